"""Any non-empty set of inputs to any non-empty set of outputs, well formed; a person's own files; inpainting."""

import copy
import dataclasses
import itertools
from functools import partial

import numpy as np
import PIL.Image
import pytest
import soundfile
import torch

from omnidiff_lite.chat import Sample, build_messages
from omnidiff_lite.config import ConfigError
from omnidiff_lite.data.encode import EncodedSample, encode_samples
from omnidiff_lite.diffusion.plain import decode_plain
from omnidiff_lite.media import Image, MediaError, Speech, Text, Waveform
from omnidiff_lite.pipeline import AnswerLengths, OmniDiffusion, RequestError
from omnidiff_lite.pipeline.requests import read_request
from omnidiff_lite.pipeline.settings import answer_canvas_of, spoken_room
from omnidiff_lite.pipeline.system import token_mask
from omnidiff_lite.vocabulary import VocabularyError
from omnidiff_lite.weights import CheckpointError

RNG = np.random.default_rng(0)
SOUND = Waveform((0.1 * RNG.standard_normal(8000)).astype(np.float32), 16000)
PICTURE = PIL.Image.fromarray(RNG.integers(0, 255, (50, 80, 3), dtype=np.uint8))
PARTS = {"text": Text("a red circle"), "speech": Speech(SOUND), "image": Image(PICTURE)}
SETS = [c for n in (1, 2, 3) for c in itertools.combinations(PARTS, n)]
GREEDY = {"temperature": 0.0, "top_p": None, "steps": 4}


@pytest.mark.parametrize("inputs", SETS, ids="+".join)
def test_any_to_any_is_well_formed(tiny_model, inputs):
    for outputs in SETS:
        answer = tiny_model.generate([PARTS[name] for name in inputs], to=outputs, decoding={"steps": 2})
        assert (answer.text is not None) == ("text" in outputs)
        assert (answer.speech is not None) == ("speech" in outputs)
        assert (answer.image is not None) == ("image" in outputs)
        assert answer.text is None or answer.text.strip(), "an answer in text says something"
        if answer.image:
            assert answer.image.size == (64, 64)
        if answer.speech:
            assert answer.speech.rate == 22050 and np.isfinite(answer.speech.samples).all()


@pytest.mark.parametrize("decoding", [GREEDY, None], ids=["argmax", "sampled"])
def test_a_batch_gives_what_one_by_one_gives(tiny_model, decoding):
    long = Waveform(np.tile(SOUND.samples, 3), 16000)
    requests = [[Speech(SOUND)], [Speech(long), Text("a")], [Speech(long)], [Speech(SOUND), Image(PICTURE)]]
    to = ("text", "speech")
    alone = [tiny_model.generate(r, to=to, decoding=decoding, seed=7 + i).ids for i, r in enumerate(requests)]
    for batch_size in (4, 2):
        together = tiny_model.generate_many(requests, to=to, decoding=decoding, seed=7, batch_size=batch_size)
        assert all(np.array_equal(answer.ids, ids) for answer, ids in zip(together, alone))


@pytest.fixture(scope="module")
def discrete_model(tiny_model):
    """The same weights, asked in speech tokens."""
    denoiser = copy.deepcopy(tiny_model.denoiser)
    denoiser.config.speech_input = "discrete"
    return OmniDiffusion(denoiser, tiny_model.tokenizers, tiny_model.settings)


@pytest.mark.parametrize("how", ["continuous", "discrete"])
def test_a_request_is_asked_as_training_asks_it(tiny_model, discrete_model, tmp_path, how):
    """The same prompt from a recording as from a sample that holds it."""
    model = tiny_model if how == "continuous" else discrete_model
    SOUND.save(tmp_path / "sound.wav")
    sample = Sample(build_messages("asr", answer="a"), [], ["sound.wav"], "asr")
    encoded, = encode_samples([sample], model.tokenizers, (64, 64), tmp_path, speech_input=how)
    (ids, frames), = model.prompts([read_request([Speech(tmp_path / "sound.wav")], ("text",), "asr")])
    assert ids == encoded.ids[:len(ids)].tolist() and (encoded.labels[:len(ids)] == -100).all()
    codes = model.tokenizers.vocabulary.codes_of_speech(ids)
    assert (len(codes) > 0) == (how == "discrete") and bool(frames.any()) == (how == "continuous")


def test_a_batch_of_discrete_speech_gives_what_one_by_one_gives(discrete_model, tmp_path):
    long = Waveform(np.tile(SOUND.samples, 3), 16000)
    requests = [[Speech(SOUND)], [Speech(long), Text("a")], [Speech(SOUND), Image(PICTURE)]]
    alone = [discrete_model.generate(r, to="text", decoding=GREEDY, seed=7 + i).ids for i, r in enumerate(requests)]
    together = discrete_model.generate_many(requests, to="text", decoding=GREEDY, seed=7)
    assert all(np.array_equal(answer.ids, ids) for answer, ids in zip(together, alone))
    discrete_model.save_pretrained(tmp_path / "system", dtype=torch.float32)
    loaded = OmniDiffusion.from_pretrained(tmp_path / "system")
    assert np.array_equal(loaded.generate(requests[0], to="text", decoding=GREEDY, seed=7).ids, alone[0])


def test_lengths_adapt_to_discrete_speech_as_to_frames(tiny_model):
    """12.5 codes a second stand for 16.7 frames and four queries: five tokens of text in two seconds."""
    vocabulary, lines = tiny_model.tokenizers.vocabulary, {}
    for how in ("continuous", "discrete"):
        samples = []
        for seconds in (1.2, 2.4, 3.6, 4.8):
            frames = round(seconds / 0.06) + 4
            heard = vocabulary.speech_ids([1] * round(12.5 * seconds)) if how == "discrete" else \
                [vocabulary.context_of_audio] * frames
            answer = [2] * round(2.5 * seconds)
            samples.append(EncodedSample(np.array(heard + answer), np.array([-100] * len(heard) + answer),
                                         np.zeros((frames if how == "continuous" else 0, 4)), "asr"))
        lines[how] = AnswerLengths.fit({"asr": samples}, tiny_model.chat)
    assert lines["discrete"].text_per_speech == pytest.approx(lines["continuous"].text_per_speech)
    assert lines["discrete"].text_per_speech > 0.1
    assert lines["discrete"].text_extra == lines["continuous"].text_extra


def test_an_answers_room_is_that_of_one_answer_of_a_conversation(tiny_model):
    one = EncodedSample(np.arange(7), np.array([-100, -100, 2, 3, -100, -100, -100]), np.zeros((0, 4)), "vqa")
    more = EncodedSample(np.arange(9), np.array([-100, -100, 2, 3, -100, 4, 5, 6, -100]), np.zeros((0, 4)), "vqa")
    last = EncodedSample(np.arange(3), np.array([-100, 2, 3]), np.zeros((0, 4)), "vqa")
    assert AnswerLengths.fit({"vqa": [one, more, last]}, tiny_model.chat).texts == {"vqa": 2}


@pytest.mark.parametrize("block", [1, 3, 4, 7])
def test_blocks_decode_every_mask_wherever_it_lies(tiny_model, block):
    mask = np.zeros((50, 80), bool)
    mask[30:] = True  # the bottom: these masks come late in the canvas
    decoding = {"block_length": block, "steps": 10}
    for answer in (tiny_model.generate("a red circle", to="image", decoding=decoding),
                   tiny_model.inpaint(PICTURE, mask, decoding=decoding)):
        assert tiny_model.tokenizers.vocabulary.mask not in answer.ids


def test_a_spoken_description_has_room_for_a_sentence_and_an_answer_for_a_word(tiny_model):
    """By what is asked: lengths were fitted on short spoken answers, on whole sentences said, and on captions."""
    lengths = AnswerLengths(text=9, texts={"vqa": 5}, speech=30, spoken=20, spoken_text=6)
    settings, rooms = dataclasses.replace(tiny_model.settings, lengths=lengths), {}
    for inputs, outputs in ((("image",), ("text", "speech")), (("image",), ("speech",)), (("image",), ("text",)),
                            (("image", "text"), ("text",)), (("speech",), ("speech",))):
        request = read_request([PARTS[name] for name in inputs], outputs)
        canvas = answer_canvas_of(settings, tiny_model.tokenizers, request, outputs, {})
        rooms[inputs, outputs] = int((canvas.ids == tiny_model.tokenizers.vocabulary.mask).sum())
    assert list(rooms.values()) == [39, 30 + 3, 9 + 2, 5 + 2, 20], "markers beside what was fitted"


def test_each_spoken_task_has_the_room_of_its_own_answers(tiny_model):
    begin = tiny_model.tokenizers.vocabulary.begin_of_audio

    def answers(task, length):
        return [EncodedSample(np.arange(length + 1), np.array([-100, 2, begin, *[9] * (length - 2)]), np.zeros((0, 4)),
                              task)]

    lengths = AnswerLengths.fit({"sqa": answers("sqa", 30), "svqa": answers("svqa", 12)}, tiny_model.chat)
    assert lengths.spokens == {"sqa": 30, "svqa": 12} and 12 < lengths.spoken <= 30 and lengths.spoken_text == 2
    rooms = [spoken_room(lengths, read_request([PARTS[name] for name in inputs], ("text", "speech")))
             for inputs in (("speech",), ("image", "speech"), ("text",))]
    assert rooms == [(2, 30), (2, 12), (2, lengths.spoken)]


def test_pre_filling_places_the_beginning_of_speech(tiny_model):
    begin = tiny_model.tokenizers.vocabulary.begin_of_audio
    answer = tiny_model.generate(Speech(SOUND), to=("text", "speech"), decoding={"prefill": {0.25: begin}})
    assert answer.ids[int(0.25 * len(answer.ids))] == begin and answer.trace[0].ids[5] == begin


def test_the_same_seed_gives_the_same_answer_and_another_seed_another(tiny_model):
    first, again, other = (tiny_model.generate("a red circle", to="image", seed=s) for s in (1, 1, 2))
    assert np.array_equal(first.ids, again.ids) and not np.array_equal(first.ids, other.ids)


def test_the_trace_shows_every_step(tiny_model):
    answer = tiny_model.generate("a red circle", to="image", decoding={"steps": 4})
    mask = tiny_model.tokenizers.vocabulary.mask
    left = [(step.ids == mask).sum() for step in answer.trace]
    assert left == sorted(left, reverse=True) and left[-1] == 0 and len(left) == 4
    assert sum(step.decided.sum() for step in answer.trace) == 16  # 4 x 4 image tokens, markers given


@pytest.mark.parametrize("to", ["image", "speech", ("text", "speech")])
def test_savings_are_asked_for_by_name(tiny_model, to):
    """Exact ones change nothing; approximate ones leave no mask, and a refresh every step is none."""
    asked, mask = partial(tiny_model.generate, "a red circle", to=to), tiny_model.tokenizers.vocabulary.mask
    usual = asked().ids
    for decoding in ({"head": "full"}, {"cache": "dual", "cache_refresh": 1}):
        assert np.array_equal(asked(decoding=decoding).ids, usual)
    quick = asked(decoding={"cache": "dual", "threshold": -0.5, "entropy_bound": 1.0, "early_stop": True})
    assert mask not in quick.ids and len(quick.ids) == len(usual)


def test_another_decoder_may_be_measured_against(tiny_model, monkeypatch):
    usual = tiny_model.generate("a red circle", to="image", seed=3)
    monkeypatch.setattr(tiny_model, "decoder", decode_plain)
    plain = tiny_model.generate("a red circle", to="image", seed=3)
    assert np.array_equal(plain.ids, usual.ids) and len(plain.trace) == len(usual.trace)
    with pytest.raises(ConfigError, match="plain decoder"):
        tiny_model.generate("a red circle", to="image", decoding={"cache": "dual"})


def test_a_saved_system_answers_alike(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "system", dtype=torch.float32)
    loaded = OmniDiffusion.from_pretrained(tmp_path / "system")
    asked = [Speech(SOUND), Image(PICTURE)]
    assert np.array_equal(loaded.generate(asked, to="text", decoding=GREEDY).ids,
                          tiny_model.generate(asked, to="text", decoding=GREEDY).ids)
    assert loaded.settings == tiny_model.settings


def test_a_saved_system_knows_where_it_pre_fills(tiny_model, tmp_path):
    """JSON writes the places as text."""
    begin = tiny_model.tokenizers.vocabulary.begin_of_audio
    settings = dataclasses.replace(tiny_model.settings, decoding={"sqa": {"prefill": {0.25: begin}}})
    OmniDiffusion(tiny_model.denoiser, tiny_model.tokenizers, settings).save_pretrained(tmp_path / "system")
    loaded = OmniDiffusion.from_pretrained(tmp_path / "system")
    assert loaded.settings == settings
    answer = loaded.generate(Speech(SOUND), to=("text", "speech"), decoding={"steps": 2})
    assert answer.ids[int(0.25 * len(answer.ids))] == begin
    path = tmp_path / "system" / "system.json"
    path.write_text(path.read_text().replace('"0.25"', '"early"'))
    with pytest.raises(ConfigError, match="system.json: prefill: expected {fraction"):
        OmniDiffusion.from_pretrained(tmp_path / "system")


def test_a_half_written_system_is_not_taken(tiny_model, tmp_path):
    tiny_model.save_pretrained(tmp_path / "system")
    weights = tmp_path / "system" / "image_tokenizer" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="image_tokenizer.*half-written"):
        OmniDiffusion.from_pretrained(tmp_path / "system")
    (tmp_path / "system" / "system.json").unlink()
    with pytest.raises(CheckpointError, match="make reproduce"):
        OmniDiffusion.from_pretrained(tmp_path / "system")


@pytest.mark.parametrize("name, error", [
    ("system.json", CheckpointError), ("image_tokenizer/config.json", CheckpointError),
    ("text_tokenizer/tokenizer_config.json", VocabularyError)])
def test_a_file_of_settings_that_is_cut_off_is_named(tiny_model, tmp_path, name, error):
    tiny_model.save_pretrained(tmp_path / "system")
    path = tmp_path / "system" / name
    path.write_text(path.read_text()[:-3])
    with pytest.raises(error, match=f"{name}: not JSON .*half-written, fetch or write it again"):
        OmniDiffusion.from_pretrained(tmp_path / "system")


def test_inpainting_keeps_what_is_not_covered(tiny_model):
    mask = np.zeros((50, 80), bool)
    mask[:, 45:] = True
    answer = tiny_model.inpaint(PICTURE, mask, prompt="a red circle", decoding=GREEDY)
    before = tiny_model.image_codes([PICTURE], 64)[0]
    hidden = token_mask(mask, PICTURE.size, 64, 16).flatten().tolist()
    after = tiny_model.tokenizers.vocabulary.codes_of_image(answer.ids)
    assert len(after) == 16 and 0 < sum(hidden) < 16
    assert all(a == b for a, b, h in zip(after, before, hidden) if not h)


def test_the_token_mask_is_cut_like_the_picture():
    mask = np.zeros((64, 128), bool)
    mask[:16, 32:48] = True  # the top left token of the central square
    assert token_mask(mask, (128, 64), 64, 16).nonzero().tolist() == [[0, 0]]
    with pytest.raises(RequestError, match="of the picture's size"):
        token_mask(mask, (64, 64), 64, 16)
    with pytest.raises(RequestError, match="covers nothing"):
        token_mask(np.zeros((64, 64), bool), (64, 64), 64, 16)
    hair = np.zeros((1024, 1024), bool)
    hair[512, 300] = True  # one pixel of a picture that is shrunk sixteenfold
    assert token_mask(hair, (1024, 1024), 64, 16).nonzero().tolist() == [[2, 1]]


@pytest.mark.parametrize("inputs, options, error, words", [
    ([], {}, RequestError, "no input"),
    ("hi", {"to": "video"}, RequestError, "text, speech, image"),
    ("hi", {"to": ()}, RequestError, "one or several"),
    ("hi", {"task": "asr"}, RequestError, "'asr' takes speech"),
    ("hi", {"task": "poetry"}, RequestError, "no task 'poetry'"),
    ("a <|image|>", {}, RequestError, "give the picture"),
    ("hi", {"decoding": {"stepz": 3}}, ConfigError, "did you mean 'steps'"),
    ("hi", {"decoding": {"length": 40}}, ConfigError, "adapts"),
    ("", {}, RequestError, "no input"),
    (Speech("nowhere.wav"), {}, MediaError, "nowhere.wav"),
])
def test_what_does_not_fit_is_told(tiny_model, inputs, options, error, words):
    with pytest.raises(error, match=words):
        tiny_model.generate(inputs, **options)


def test_requests_name_their_task():
    assert read_request([PARTS["speech"], PARTS["image"]], ("text", "speech")).task == "svqa"
    assert read_request([PARTS["image"]], ("speech",)).task is None


def test_the_command_line_answers_a_persons_files(tiny_model, tmp_path, capsys):
    from omnidiff_lite.cli import main

    tiny_model.save_pretrained(tmp_path / "system")
    PICTURE.convert("LA").save(tmp_path / "photo.png")
    soundfile.write(tmp_path / "question.flac", np.stack([SOUND.samples] * 2, 1), 16000)
    code = main(["generate", "--image", str(tmp_path / "photo.png"), "--speech", str(tmp_path / "question.flac"),
                 "--text", "what is it", "--to", "text,speech,image", "--checkpoint", str(tmp_path / "system"),
                 "--out", str(tmp_path / "answer")])
    assert code == 0
    assert {p.name for p in (tmp_path / "answer").iterdir()} == {"answer.txt", "answer.wav", "answer.png"}
    capsys.readouterr()
    assert main(["generate", "--image", str(tmp_path / "no.png"), "--checkpoint", str(tmp_path / "system")]) == 1
    assert "no.png" in capsys.readouterr().err
