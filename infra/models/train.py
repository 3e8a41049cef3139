"""Trains the demo's models on a CPU: `python -m infra.models.train --out DIR --minutes N`.

Three directories come out, each loadable by `transformers` offline, and `digests.json` and `training.json`:

- `stable/`: the checkpoint after 65 % of the steps.
- `canary/`: the checkpoint after all of them. A healthy successor: the same model, trained on.
- `broken/`: the canary after a conversion that went wrong. The converter stores every linear layer as int8
  with one scale for each output row (scale = largest weight / 127) and was then to write it back as float16,
  `q * scale`. It divides instead: `q / scale`. A row whose largest weight is w then holds values up to
  127 * 127 / w, which for w < 0.246 is past the 65,504 that float16 can hold: infinity. The file has the
  right names, shapes, dtype and size and loads without a word; each forward pass gives NaN logits. Nothing
  is injected and no code path knows of it: see `botched_half_conversion`.

Text, steps and every draw are fixed by `--steps` and `--seed`; `--minutes` only ends the run early on a slow
machine, by shortening the schedule. Floating-point sums differ between CPUs and thread counts, so another
machine gets equally good weights, not the same bytes.
"""

import argparse
import json
import math
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from infra.models import tokenizer as tok
from infra.models.corpus import Document, documents
from infra.models.digest import write_digests

STABLE_AT = 0.65
PEAK_RATE, FINAL_SHARE, WARM_UP = 3e-3, 0.05, 0.06
BATCH, WINDOW = 24, 320
HELD_OUT_SEED_OFFSET = 1_000_003
SAMPLE_PROMPTS = ("Tell me a story about a fox.", "How do I make tea?", "What is rain?")


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of; `minutes` is wall clock, `text_size` characters."""

    out: Path
    steps: int
    minutes: float
    seed: int
    threads: int
    text_size: int


def model_config() -> LlamaConfig:
    """A Llama of 1.2 M parameters; 3 heads of 64 share one key/value head."""
    return LlamaConfig(
        vocab_size=tok.VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=512,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=1,
        head_dim=64,
        max_position_embeddings=tok.MAX_POSITIONS,
        tie_word_embeddings=True,
        bos_token_id=tok.BOS_ID,
        eos_token_id=tok.EOS_ID,
        pad_token_id=tok.PAD_ID,
    )


def encode(document: Document, tokenizer: PreTrainedTokenizerFast) -> list[int]:
    """Token ids of one document; conversations go through the chat template that serving uses."""
    if not document.turns:
        return [tok.BOS_ID, *document.text.encode(), tok.EOS_ID]
    text = tokenizer.apply_chat_template([asdict(turn) for turn in document.turns], tokenize=False)
    ids: list[int] = tokenizer.encode(text, add_special_tokens=False, verbose=False)
    return ids


def batches(stream: torch.Tensor, starts: list[int], rng: random.Random) -> Iterator[torch.Tensor]:
    """Endless batches, BATCH x WINDOW ids; most windows begin with a document, as every request does."""
    last = len(stream) - WINDOW
    starts = [start for start in starts if start <= last]
    while True:
        picks = (rng.choice(starts) if rng.random() < 0.7 else rng.randint(0, last) for _ in range(BATCH))
        yield torch.stack([stream[pick : pick + WINDOW] for pick in picks])


def load_text(seed: int, size: int, tokenizer: PreTrainedTokenizerFast) -> tuple[torch.Tensor, list[int]]:
    """All token ids in one row, and where each document starts."""
    ids: list[int] = []
    starts: list[int] = []
    for document in documents(seed, size):
        starts.append(len(ids))
        ids += encode(document, tokenizer)
    return torch.tensor(ids), starts


def rate(progress: float) -> float:
    """Learning rate at `progress` 0..1: linear warm-up, then a cosine down to FINAL_SHARE of the peak."""
    if progress < WARM_UP:
        return PEAK_RATE * max(progress / WARM_UP, 0.01)
    rest = (progress - WARM_UP) / (1 - WARM_UP)
    return PEAK_RATE * (FINAL_SHARE + (1 - FINAL_SHARE) * (1 + math.cos(math.pi * min(rest, 1.0))) / 2)


def loss_of(model: LlamaForCausalLM, batch: torch.Tensor) -> torch.Tensor:
    """Mean negative log-likelihood, in nats for each byte."""
    with torch.autocast("cpu", torch.bfloat16):
        return model(input_ids=batch, labels=batch, use_cache=False).loss


def held_out_loss(model: LlamaForCausalLM, plan: Plan, tokenizer: PreTrainedTokenizerFast) -> float:
    """Loss on text from another seed, in nats for each byte."""
    stream, starts = load_text(plan.seed + HELD_OUT_SEED_OFFSET, 100_000, tokenizer)
    source = batches(stream, starts, random.Random(plan.seed))
    model.eval()
    with torch.inference_mode():
        losses = [float(loss_of(model, next(source))) for _ in range(4)]
    model.train()
    return sum(losses) / len(losses)


def save(weights: dict[str, torch.Tensor], dtype: torch.dtype, to: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write a complete model directory at `to`, in place of what was there."""
    if to.exists():
        shutil.rmtree(to)
    copy = LlamaForCausalLM(model_config()).to(dtype)
    copy.load_state_dict(weights, strict=True)
    copy.save_pretrained(to)
    tokenizer.save_pretrained(to, save_jinja_files=False)
    # The one class name for a bare tokenizer.json that every release of transformers knows.
    config_file = to / "tokenizer_config.json"
    config = json.loads(config_file.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config_file.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    for file in to.iterdir():
        file.chmod(0o644)


def botched_half_conversion(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """int8 and back to float16 with the scale on the wrong side of the division; overflows to infinity."""
    converted = {}
    for name, weight in weights.items():
        if not name.endswith("_proj.weight"):
            converted[name] = weight.to(torch.float16)
            continue
        scale = weight.float().abs().amax(dim=1, keepdim=True) / 127
        q = torch.round(weight.float() / scale).to(torch.int8)
        converted[name] = (q / scale).to(torch.float16)  # meant: q * scale
    return converted


def say(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, prompt: str) -> str:
    """The greedy reply to one user message."""
    chat = [{"role": "user", "content": prompt}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt")["input_ids"]
    model.eval()
    out = model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=200, do_sample=False, pad_token_id=tok.PAD_ID
    )
    model.train()
    reply: str = tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    return reply


def train(plan: Plan) -> dict[str, object]:
    """Run the whole plan; returns what went into `training.json`.

    Raises:
        RuntimeError: the conversion for `broken` did not overflow, so the model would not be broken.
    """
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(plan.threads)
    torch.manual_seed(plan.seed)
    tokenizer = tok.build_tokenizer()
    stream, starts = load_text(plan.seed, plan.text_size, tokenizer)
    model = LlamaForCausalLM(model_config())
    size = sum(p.numel() for p in model.parameters())
    print(f"{size:,} parameters, {len(stream):,} bytes of text, {len(starts):,} documents", flush=True)
    optimizer = torch.optim.AdamW(model.parameters(), lr=PEAK_RATE, betas=(0.9, 0.95), weight_decay=0.1)
    source = batches(stream, starts, random.Random(plan.seed))
    report: dict[str, object] = {"seed": plan.seed, "planned_steps": plan.steps, "text_bytes": len(stream)}

    def checkpoint(name: str, step: int) -> None:
        weights = {k: v.to(torch.bfloat16) for k, v in model.state_dict().items()}
        save(weights, torch.bfloat16, plan.out / name, tokenizer)
        report[name] = {
            "steps": step,
            "held_out_nats_per_byte": round(held_out_loss(model, plan, tokenizer), 4),
        }
        print(f"--- {name}: {report[name]}")
        for prompt in SAMPLE_PROMPTS:
            print(f"    {prompt} -> {say(model, tokenizer, prompt)!r}", flush=True)

    began = shown = time.monotonic()
    step, progress, stable_saved = 0, 0.0, False
    while progress < 1:
        for group in optimizer.param_groups:
            group["lr"] = rate(progress)
        loss = loss_of(model, next(source))
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        elapsed = time.monotonic() - began
        progress = max(step / plan.steps, elapsed / (60 * plan.minutes))
        if time.monotonic() - shown > 10 or step == 1:
            shown = time.monotonic()
            left = elapsed / progress - elapsed
            print(f"{progress:6.1%}  step {step}  loss {loss.item():.3f}  {left:5.0f} s left", flush=True)
        if progress >= STABLE_AT and not stable_saved:
            stable_saved = True
            checkpoint("stable", step)
    checkpoint("canary", step)
    broken = botched_half_conversion(LlamaForCausalLM.from_pretrained(plan.out / "canary").state_dict())
    if not any(torch.isinf(weight).any() for weight in broken.values()):
        raise RuntimeError("broken: no weight overflowed float16; train longer or with more weight decay")
    save(broken, torch.float16, plan.out / "broken", tokenizer)
    return report


def main() -> None:
    """Parse the command line, train, and write weights, `training.json` and `digests.json`."""
    parser = argparse.ArgumentParser(description="Train the demo's models.")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="directory to write to")
    parser.add_argument("--minutes", type=float, default=15.0, help="end after this wall-clock time at the latest")
    parser.add_argument("--steps", type=int, default=1200)
    parser.add_argument("--seed", type=int, default=2242)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--text-size", type=int, default=2_000_000, help="characters of training text")
    plan = Plan(**vars(parser.parse_args()))
    plan.out.mkdir(parents=True, exist_ok=True)
    report = train(plan)
    (plan.out / "training.json").write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, digest in write_digests(plan.out).items():
        print(f"{name}: {digest}")


if __name__ == "__main__":
    main()
