"""Canvases: what is laid out where, which ids each position allows, and how an answer is read off."""

from __future__ import annotations

import pytest
import torch

from omnidiff_lite.diffusion.canvas import AnswerTokens, answer_canvas, fit_image_codes, inpainting_canvas, read_answer
from omnidiff_lite.vocabulary import Vocabulary

V = Vocabulary.small(text=20, speech_codes=6, image_codes=8)
M, NEWLINE = V.mask, 10


def test_a_picture_has_all_its_markers():
    canvas = answer_canvas(V, ["image"], {"image": 4}, newline=NEWLINE)
    assert canvas.ids.tolist() == [V.begin_of_image, M, M, M, M, V.end_of_image, V.im_end, NEWLINE]
    assert canvas.spans == (("image", 1, 5),) and canvas.allowed["image"] == (V.image_range,)


def test_the_released_picture_takes_260_tokens():
    assert len(answer_canvas(Vocabulary.released(), ["image"], {"image": 256}, newline=198)) == 260


def test_text_then_speech_pre_infills_begin_of_audio_and_leaves_the_end_open():
    canvas = answer_canvas(V, ["text", "speech"], {"text": 3, "speech": 4}, newline=NEWLINE)
    assert canvas.ids.tolist() == [M] * 3 + [V.begin_of_audio] + [M] * (4 + 3)  # codes, then end_of_audio and closing
    assert canvas.spans == (("first text", 0, 1), ("text", 1, 3), ("first speech", 4, 5), ("speech", 5, 11))
    assert canvas.allowed["first speech"] == (V.speech_range,), "something is said, so that no answer is silent"
    allowed = {i for part in canvas.allowed["speech"] for i in part}
    assert allowed == {*V.speech_range, V.end_of_audio, V.im_end, V.pad, NEWLINE}
    assert M not in {i for parts in canvas.allowed.values() for part in parts for i in part}


def test_text_alone_may_end_early():
    canvas = answer_canvas(V, ["text"], {"text": 5})
    assert canvas.ids.tolist() == [M] * 6 and canvas.spans == (("first text", 0, 1), ("text", 1, 6))
    allowed = {i for part in canvas.allowed["text"] for i in part}
    assert allowed == {*V.text_range, V.im_end, V.pad}


def test_all_three_in_the_order_asked_for():
    canvas = answer_canvas(V, ["image", "text", "speech"], {"image": 2, "text": 1, "speech": 2})
    assert canvas.ids.tolist() == [V.begin_of_image, M, M, V.end_of_image, M, V.begin_of_audio, M, M, M, M]
    assert [span.modality for span in canvas.spans] == ["image", "first text", "text", "first speech", "speech"]
    assert canvas.spans[2] == ("text", 5, 5), "one token of text is its first"


def test_without_markers_everything_is_masked_and_any_answer_is_possible():
    canvas = answer_canvas(V, ["text", "image"], {"text": 2, "image": 2}, markers=False)
    assert canvas.ids.tolist() == [M] * 7
    allowed = {i for part in canvas.allowed["any"] for i in part}
    assert {V.begin_of_image, V.end_of_image, V.im_end, *V.text_range, *V.image_range} <= allowed and M not in allowed


def test_bad_outputs():
    with pytest.raises(ValueError, match="'video' is none of"):
        answer_canvas(V, ["video"], {"video": 3})
    with pytest.raises(ValueError, match="lengths says nothing of 'speech'"):
        answer_canvas(V, ["speech"], {"text": 3})


def test_inpainting_keeps_what_is_known_also_where_height_and_width_differ():
    codes = torch.arange(6).view(2, 3)
    mask = torch.tensor([[0, 1, 0], [0, 1, 1]], dtype=torch.bool)
    canvas = inpainting_canvas(V, codes, mask)
    first = V.image_range.start
    assert canvas.ids.tolist() == [V.begin_of_image, first, M, first + 2, first + 3, M, M, V.end_of_image, V.im_end]
    with pytest.raises(ValueError, match="differ in shape"):
        inpainting_canvas(V, codes, mask.T)


def test_reading_an_answer():
    speech, image = V.speech_ids([1, 2]), V.image_ids([7, 0])
    ids = [3, 4, V.begin_of_audio, *speech, V.end_of_audio, V.begin_of_image, *image, V.end_of_image, V.im_end, 5]
    assert read_answer(V, ids) == AnswerTokens([3, 4], [1, 2], [7, 0])
    assert read_answer(V, torch.tensor(ids)) == read_answer(V, ids)


def test_released_reading_keeps_every_id_wherever_it_stands():
    speech = V.speech_ids([1, 2])
    ids = [3, V.im_end, speech[0], V.end_of_audio, 4, speech[1]]
    assert read_answer(V, ids) == AnswerTokens([3], [1], [])
    assert read_answer(V, ids, released=True) == AnswerTokens([3, V.im_end, V.end_of_audio, 4], [1, 2], [])


def test_image_codes_are_cut_or_filled_up():
    assert fit_image_codes([1, 2, 3], 2) == [1, 2] and fit_image_codes([1, 2], 4) == [1, 2, 2, 2]
    with pytest.raises(ValueError, match="no image token"):
        fit_image_codes([], 4)
