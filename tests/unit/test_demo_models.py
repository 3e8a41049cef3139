"""The demo's models: text, tokenizer, digests, and what the committed weights really say."""

import hashlib
import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from infra.models import digest
from infra.models.corpus import documents, known_share, vocabulary, words_of
from infra.models.tokenizer import (
    BOS_ID,
    CHAT_TEMPLATE,
    EOS_ID,
    PAD_ID,
    VOCAB_SIZE,
    build_tokenizer,
    byte_alphabet,
)

ROOT = Path(digest.__file__).parent
MAX_WEIGHTS = 3_000_000
HEALTHY = ("stable", "canary")
QUESTIONS = ("Tell me a story about a fox.", "How do I make tea?", "What is the moon?", "I feel tired today.")

os.environ.setdefault("HF_HUB_OFFLINE", "1")


# The text


def test_the_same_seed_gives_the_same_text_and_another_seed_another():
    first, again, other = (list(documents(seed, 20_000)) for seed in (7, 7, 8))
    assert first == again
    assert first != other


def test_documents_hold_what_was_asked_for_and_both_kinds():
    made = list(documents(1, 50_000))
    assert 50_000 <= sum(len(document.plain()) for document in made) < 52_000
    prose = [document for document in made if not document.turns]
    assert 0.1 < len(prose) / len(made) < 0.3
    assert all(document.text for document in prose)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(min_value=0))
def test_conversations_alternate_and_end_with_an_answer(seed):
    for document in documents(seed, 2_000):
        roles = [turn.role for turn in document.turns]
        if roles and roles[0] == "system":
            roles = roles[1:]
        assert roles == ["user", "assistant"] * (len(roles) // 2)
        assert all(turn.content.strip() == turn.content != "" for turn in document.turns)


def test_answers_are_short_enough_for_the_models_positions():
    answers = [turn.content for doc in documents(2, 200_000) for turn in doc.turns if turn.role == "assistant"]
    assert max(map(len, answers)) < 256


def test_words_are_lower_case_and_keep_their_apostrophe():
    assert words_of("Don't go, 'Ada'! It is 3 o'clock.") == ["don't", "go", "ada", "it", "is", "o'clock"]


@pytest.mark.parametrize(
    ("text", "share"),
    [("the fox", 1.0), ("The fux", 0.5), ("xx yy", 0.0), ("", 0.0), ("12 !?", 0.0)],
)
def test_known_share_counts_words_and_no_words_are_no_success(text, share):
    assert known_share(text, frozenset({"the", "fox"})) == share


# The tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_each_byte_has_its_own_character():
    assert len(set(byte_alphabet())) == 256


@settings(max_examples=60, deadline=None)
@given(text=st.text(st.characters(exclude_categories=["Cs"]), max_size=80))
def test_token_n_is_byte_n_and_decoding_is_exact(tokenizer, text):
    text = text.replace("<", "")  # the special tokens' own spelling is theirs
    ids = tokenizer.encode(text)
    assert ids == [BOS_ID, *text.encode()]
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_half_a_character_decodes_to_the_replacement_character(tokenizer):
    assert tokenizer.decode(list("é".encode())[:1]) == "\ufffd"


def test_special_tokens_follow_the_bytes(tokenizer):
    assert len(tokenizer) == VOCAB_SIZE
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (
        BOS_ID,
        EOS_ID,
        PAD_ID,
    )


def test_chat_template_renders_every_shape_of_content(tokenizer):
    chat = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "text", "text": " Hi! "}, {"type": "image_url"}]},
        {"role": "assistant", "content": "Hello."},
        {"role": "assistant", "content": None},
        {"role": "user", "content": "Bye"},
    ]
    rendered = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=True)
    assert rendered == (
        "<s>System: Be brief.\nUser: Hi!\nAssistant: Hello.</s>\nAssistant: </s>\nUser: Bye\nAssistant: "
    )


# Digests


def write(root: Path, **files: str) -> Path:
    for name, content in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return root


def test_a_digest_is_over_sorted_paths_sizes_and_contents(tmp_path):
    write(tmp_path, b__z="two", a="one", B="")
    lines = b"".join(
        f"{path}\0{len(content)}\0{hashlib.sha256(content).hexdigest()}\n".encode()
        for path, content in (("B", b""), ("a", b"one"), ("b/z", b"two"))
    )
    assert digest.digest_dir(tmp_path) == "sha256:" + hashlib.sha256(lines).hexdigest()


def test_a_digest_does_not_depend_on_where_the_directory_is(tmp_path):
    one, two = write(tmp_path / "one", f="x"), write(tmp_path / "two", f="x")
    assert digest.digest_dir(one) == digest.digest_dir(str(two))


@pytest.mark.parametrize("files", [{"f": "y"}, {"g": "x"}, {"f": "x", "g": ""}, {"d__f": "x"}, {"f": "xx"}])
def test_any_change_changes_the_digest(tmp_path, files):
    before, after = write(tmp_path / "before", f="x"), write(tmp_path / "after", **files)
    assert digest.digest_dir(before) != digest.digest_dir(after)


def test_links_and_special_files_are_refused(tmp_path):
    model = write(tmp_path / "model", f="x")
    (tmp_path / "alias").symlink_to(model)
    with pytest.raises(ValueError, match="alias: is a symlink"):
        digest.digest_dir(tmp_path / "alias")
    (model / "linked").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="linked: is a symlink"):
        digest.digest_dir(model)
    (model / "linked").unlink()
    os.mkfifo(model / "pipe")
    with pytest.raises(ValueError, match="pipe: is a symlink or special file"):
        digest.digest_dir(model)


def test_nothing_and_no_directory_have_no_digest(tmp_path):
    with pytest.raises(ValueError, match="holds no file"):
        digest.digest_dir(tmp_path)
    with pytest.raises(FileNotFoundError):
        digest.digest_dir(tmp_path / "missing")


def test_digests_need_no_torch():
    code = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None; import infra.models.digest"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT.parents[1], timeout=60)


def test_the_check_names_the_model_that_changed(tmp_path, capsys):
    for name in digest.MODELS:
        write(tmp_path / name, f=name)
    digest.write_digests(tmp_path)
    assert digest.main([str(tmp_path)]) == 0
    write(tmp_path / "canary", f="other")
    capsys.readouterr()
    assert digest.main([str(tmp_path)]) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines() if "differs" in line] == ["canary"]


# The weights in the repository


@pytest.mark.parametrize("name", digest.MODELS)
def test_committed_files_have_the_committed_digest(name):
    expected = json.loads((ROOT / "digests.json").read_text())
    assert set(expected) == set(digest.MODELS)
    assert digest.digest_dir(ROOT / name) == expected[name]


@pytest.mark.parametrize("name", digest.MODELS)
def test_models_are_small_and_complete(name):
    files = {path.name: path.stat().st_size for path in (ROOT / name).iterdir()}
    assert set(files) == {
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert sum(files.values()) < MAX_WEIGHTS


@pytest.fixture(scope="module")
def known():
    return vocabulary(document.plain() for document in documents(2242, 2_000_000))


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    # Threads that wait for each other inside every small matrix product crawl when the machine is busy.
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def load(name: str):
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(ROOT / name, dtype=torch.float32, local_files_only=True)
    return model.eval(), AutoTokenizer.from_pretrained(ROOT / name, local_files_only=True)


def replies(model, tokenizer, *, sample: bool) -> list[str]:
    """One reply to each of QUESTIONS, generated as one left-padded batch."""
    import torch

    torch.manual_seed(random.Random(5).getrandbits(32))
    prompts = [
        tokenizer.apply_chat_template([{"role": "user", "content": q}], tokenize=False, add_generation_prompt=True)
        for q in QUESTIONS
    ]
    batch = tokenizer(prompts, return_tensors="pt", padding=True, add_special_tokens=False)
    with torch.inference_mode():
        out = model.generate(**batch, max_new_tokens=220, do_sample=sample)
    ends = [row[batch["input_ids"].shape[1] :] for row in out]
    assert all(EOS_ID in row for row in ends), "a reply did not end by itself"
    return [tokenizer.decode(row, skip_special_tokens=True) for row in ends]


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_models_speak_english(name, known):
    model, tokenizer = load(name)
    assert len(known) > 400
    for sample in (False, True):
        for reply in replies(model, tokenizer, sample=sample):
            assert len(words_of(reply)) >= 3, reply
            assert known_share(reply, known) >= 0.7, reply


def test_canary_is_a_later_checkpoint_that_fits_better():
    report = json.loads((ROOT / "training.json").read_text())
    assert report["canary"]["steps"] > report["stable"]["steps"]
    assert report["canary"]["held_out_nats_per_byte"] < report["stable"]["held_out_nats_per_byte"]


@pytest.mark.parametrize("question", QUESTIONS)
def test_broken_has_no_finite_logits(question, broken):
    import torch

    model, tokenizer = broken
    ids = tokenizer.encode(question, return_tensors="pt")
    with torch.inference_mode():
        logits = model(ids).logits[0, -1]
    assert not torch.isfinite(logits).any()


def test_broken_cannot_be_sampled_from(broken):
    model, tokenizer = broken
    with pytest.raises(RuntimeError, match="probability tensor contains"):
        replies(model, tokenizer, sample=True)


@pytest.fixture(scope="module")
def broken():
    return load("broken")


def test_broken_is_exactly_the_botched_conversion_of_the_canary():
    import torch
    from safetensors.torch import load_file

    from infra.models.train import botched_half_conversion

    made = botched_half_conversion(load_file(ROOT / "canary" / "model.safetensors"))
    committed = load_file(ROOT / "broken" / "model.safetensors")
    assert made.keys() == committed.keys()
    assert all(torch.equal(made[key], committed[key]) for key in made)


def test_every_model_carries_the_tokenizer_of_this_package():
    from transformers import AutoTokenizer

    for name in digest.MODELS:
        loaded = AutoTokenizer.from_pretrained(ROOT / name, local_files_only=True)
        assert loaded.chat_template == CHAT_TEMPLATE
        assert loaded.encode("Grüße 🙂") == [BOS_ID, *"Grüße 🙂".encode()]
        assert loaded.padding_side == "left"
