"""One id space, and messages as ids and labels; the released ids, prompts and layouts are in test_parity_report.py."""

import numpy as np
import pytest

from omnidiff_lite.chat import (IGNORE, TASKS, ChatEncoder, ChatError, SpeechTokens, build_messages, compose_messages,
                                infer_task, task_of)
from omnidiff_lite.tokenizers.text import decode_text, encode_text, extend, load_text_tokenizer, train_text_tokenizer
from omnidiff_lite.vocabulary import Vocabulary, VocabularyError


@pytest.fixture(scope="module")
def text():
    tokenizer = train_text_tokenizer(["a red circle above a blue square", "user assistant system"] * 4, 300)
    return tokenizer, extend(tokenizer, 16, 8)


def test_small_vocabularies_keep_the_order(text):
    _, vocabulary = text
    order = sorted(vocabulary.ids, key=vocabulary.ids.get)
    released = Vocabulary.released()
    assert order == sorted(released.ids, key=released.ids.get)
    assert [vocabulary.modality(i) for i in (0, vocabulary.mask, vocabulary.speech_range[0], vocabulary.size - 1)] == [
        "text", "special", "speech", "image"]
    assert vocabulary.codes_of_speech(vocabulary.speech_ids([3, 0, 15])) == [3, 0, 15]


def test_a_code_outside_its_codebook_is_an_error(text):
    with pytest.raises(VocabularyError, match="image code 8"):
        text[1].image_ids([8])


def test_a_saved_tokenizer_comes_back_with_the_same_layout(text, tmp_path):
    text[0].save_pretrained(tmp_path)
    assert load_text_tokenizer(tmp_path, 16, 8)[1] == text[1]


def test_a_tokenizer_with_another_codebook_is_refused(text, tmp_path):
    text[0].save_pretrained(tmp_path)
    with pytest.raises(VocabularyError, match="codebook sizes|order of added tokens"):
        load_text_tokenizer(tmp_path, 20, 8)


def test_any_text_survives_and_markers_in_it_stay_text(text):
    tokenizer, vocabulary = text
    for words in ("a red circle", "Größe 東京 🙂", "x<|im_end|>y <|audio_3|>"):
        ids = encode_text(tokenizer, words)
        assert all(i in vocabulary.text_range for i in ids)
        assert decode_text(tokenizer, ids) == words


def test_only_the_answer_is_labelled(text):
    tokenizer, vocabulary = text
    messages = build_messages("svqa", answer="a red circle")
    ids, labels = ChatEncoder(vocabulary, tokenizer).sample(
        messages, [[1, 2, 3, 4]], [SpeechTokens(frames=6), SpeechTokens(codes=[5, 6])])
    answer = [i for i, label in zip(ids, labels) if label != IGNORE]
    assert answer == [i for i in labels if i != IGNORE] and labels.count(IGNORE) == len(ids) - len(answer)
    assert decode_text(tokenizer, answer[:answer.index(vocabulary.begin_of_audio)]) == "a red circle"
    assert vocabulary.codes_of_speech(answer) == [5, 6] and vocabulary.codes_of_image(answer) == []
    assert answer[-2] == vocabulary.im_end and tokenizer.decode(answer[-1:]) == "\n"
    assert ids.count(vocabulary.context_of_audio) == 6 and vocabulary.codes_of_image(ids) == [1, 2, 3, 4]


def test_the_prompt_is_the_sample_up_to_the_answer(text):
    encoder = ChatEncoder(text[1], text[0])
    messages = build_messages("asr", answer="a blue square")
    audio = [SpeechTokens(frames=5)]
    ids, labels = encoder.sample(messages, audios=audio)
    prompt = encoder.prompt(messages, audios=audio)
    assert ids[:len(prompt)] == prompt and set(labels[:len(prompt)]) == {IGNORE} and IGNORE not in labels[len(prompt):]


def test_placeholders_must_match_the_media(text):
    with pytest.raises(ChatError, match="1 <|audio|>.* 0 audios".replace("|", r"\|")):
        ChatEncoder(text[1], text[0]).sample(build_messages("asr"))


def test_tasks_are_inferred_from_inputs_and_outputs():
    assert infer_task({"speech"}, ["text"]) == "asr"
    assert infer_task({"speech", "image"}, ("text", "speech")) == "svqa"
    assert infer_task({"speech"}, ["speech"]) == "sqa", "half of a trained answer is asked for as it was trained"
    assert infer_task({"speech", "image"}, ["text"]) == infer_task({"speech", "image"}, ["speech"]) == "svqa"
    assert infer_task({"image"}, ("speech",)) is None
    assert all(infer_task(set(t.inputs), t.outputs) == name for name, t in TASKS.items())


def test_unnamed_combinations_still_place_every_input():
    user = compose_messages(["speech", "text", "image"], ["image"], "at night")[-1]["content"]
    assert user == "<|audio|>\nat night\n<|image|>"


def test_training_draws_paraphrases():
    rng = np.random.default_rng(0)
    assert len({build_messages("t2i", "x", rng=rng)[0]["content"] for _ in range(80)}) == 8


def test_the_task_of_a_conversation_is_read_off_its_turns():
    for task in TASKS:
        assert task_of(build_messages(task, "what is it", answer="a red circle")) == task
