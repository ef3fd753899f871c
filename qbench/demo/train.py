"""Train the demo model from nothing and write all that ships with it: `python -m qbench.demo.train --out DIR`.

One seed fixes every byte of the questions, texts and tokenizer; the weights are the same on the same machine with the
same number of threads.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import torch
import transformers
import typer
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from qbench.demo.batches import NO_WORD, Batch, batches
from qbench.demo.corpus import sample_text
from qbench.demo.tokenizer import MAX_LENGTH, train_tokenizer
from qbench.demo.world import (
    LETTERS,
    SUBJECTS,
    Question,
    World,
    build_world,
    dev_questions,
    prompt,
    test_questions,
)

SEED = 0
STEPS = 2600
LEARNING_RATE = 2e-3
WARMUP_STEPS = 50
DECAY_FROM = 0.6
WEIGHT_DECAY = 0.05
WORD_LAYER = 2
WORD_LOSS_WEIGHT = 0.4
EMBEDDING_DEVIATION = 0.05
MATCH_DEVIATION = 0.1
CALIBRATION_CHARACTERS = 300_000
HELDOUT_CHARACTERS = 150_000
EVALUATION_BATCH = 50
REPORT_STEPS = 100


def build_model(vocab_size: int, seed: int) -> LlamaForCausalLM:
    """A new Llama of about four million parameters; 128 divides the in_features of every linear."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LENGTH,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
        pad_token_id=0,
        # Over rows this short, plain attention is faster on a CPU than the fused one.
        attn_implementation="eager",
    )
    model = LlamaForCausalLM(config)
    _favour_matches(model)
    return model


@torch.no_grad()
def _favour_matches(model: LlamaForCausalLM) -> None:
    """Let half of the heads above the first layer begin by looking for earlier tokens like their own.

    Queries and keys begin with the same projection, on the slow half of the rotary pairs, so that distance matters
    little. From random projections, finding an option by its name takes a model of this size many times the steps.
    """
    config = model.config
    head_dim = config.hidden_size // config.num_attention_heads
    slow = (torch.arange(head_dim) % (head_dim // 2)) >= head_dim // 4
    model.model.embed_tokens.weight.normal_(0.0, EMBEDDING_DEVIATION)
    for layer in model.model.layers[1:]:
        match = torch.randn(int(slow.sum()), config.hidden_size) * MATCH_DEVIATION
        for projection in (layer.self_attn.k_proj, layer.self_attn.q_proj):
            heads = projection.weight.view(-1, head_dim, config.hidden_size)
            heads[heads.shape[0] // 2 :, slow] = match


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, a plateau, then half a cosine down to a fiftieth."""
    if step < WARMUP_STEPS:
        return LEARNING_RATE * (step + 1) / WARMUP_STEPS
    decayed = max(0.0, (step / steps - DECAY_FROM) / (1 - DECAY_FROM))
    return LEARNING_RATE * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * decayed)))


def batch_loss(model: LlamaForCausalLM, batch: Batch) -> torch.Tensor:
    """Weighted mean loss of the next token, plus that of the word behind each answer after `WORD_LAYER` layers.

    The second term makes the model know the word early, so that the layers above can look for it among the options.
    """
    row, column = batch.weights.nonzero(as_tuple=True)
    answer = (batch.words != NO_WORD).nonzero(as_tuple=True)
    with torch.autocast("cpu", torch.bfloat16):
        output = model.model(batch.tokens, use_cache=False, output_hidden_states=True)
        logits = model.lm_head(output.last_hidden_state[row, column])
        word_logits = model.lm_head(model.model.norm(output.hidden_states[WORD_LAYER][answer]))
    weights = batch.weights[row, column]
    losses = F.cross_entropy(logits.float(), batch.tokens[row, column + 1], reduction="none")
    loss = (losses * weights).sum() / weights.sum()
    if len(answer[0]):
        loss = loss + WORD_LOSS_WEIGHT * F.cross_entropy(word_logits.float(), batch.words[answer])
    return loss


def make_optimizers(model: LlamaForCausalLM) -> tuple[torch.optim.Optimizer, ...]:
    """Muon for the linears, which learn in fewer steps with it, and AdamW for embeddings and norms."""
    linears = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    return (
        torch.optim.Muon(linears, weight_decay=WEIGHT_DECAY, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    )


def train(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    world: World,
    steps: int,
    seed: int,
    report: Callable[[int, float], None] = lambda step, loss: None,
) -> float:
    """Train in place, in bfloat16 with float32 weights; return the loss of the last step.

    `report` is called with the number of steps done and their last loss every `REPORT_STEPS`.
    """
    optimizers = make_optimizers(model)
    model.train()
    loss = torch.tensor(math.nan)
    for step, batch in enumerate(batches(world, tokenizer, steps, seed)):
        loss = batch_loss(model, batch)
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            optimizer.step()
            optimizer.zero_grad()
        if (step + 1) % REPORT_STEPS == 0:
            report(step + 1, loss.item())
    return loss.item()


def exam_prompts(world: World, seed: int) -> list[tuple[str, Question]]:
    """Every test question with its 5-shot prompt."""
    return [
        (prompt(subject.name, dev_questions(world, subject, seed), question), question)
        for subject in SUBJECTS
        for question in test_questions(world, subject, seed)
    ]


@torch.inference_mode()
def accuracy(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, exam: list[tuple[str, Question]]) -> float:
    """The share of questions whose right letter is the likeliest of the four."""
    letters = [tokenizer(f" {letter}")["input_ids"][0] for letter in LETTERS]
    model.eval()
    correct = 0
    for start in range(0, len(exam), EVALUATION_BATCH):
        part = exam[start : start + EVALUATION_BATCH]
        inputs = tokenizer([text for text, _ in part], padding=True, padding_side="right", return_tensors="pt")
        last = inputs["attention_mask"].sum(dim=1) - 1
        logits = model(**inputs).logits[torch.arange(len(part)), last]
        answers = torch.tensor([question.answer for _, question in part])
        correct += int((logits[:, letters].argmax(dim=1) == answers).sum())
    return correct / len(exam)


def write_data(world: World, out: Path, seed: int) -> None:
    """Write the questions and the two texts."""
    for split, questions_of in (("dev", dev_questions), ("test", test_questions)):
        folder = out / "mmlu" / split
        folder.mkdir(parents=True, exist_ok=True)
        for subject in SUBJECTS:
            with (folder / f"{subject.name}_{split}.csv").open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, lineterminator="\n").writerows(q.row() for q in questions_of(world, subject, seed))
    texts = {"calibration": CALIBRATION_CHARACTERS, "heldout": HELDOUT_CHARACTERS}
    for name, characters in texts.items():
        (out / f"{name}.txt").write_text(sample_text(world, f"{name} {seed}", characters), encoding="utf-8")


def main(
    out: Annotated[Path, typer.Option(help="folder for model/, mmlu/ and the texts")],
    steps: Annotated[int, typer.Option(help="training steps")] = STEPS,
    data_only: Annotated[bool, typer.Option(help="write questions, texts and tokenizer only")] = False,
) -> None:
    """Make the demo model's folder anew."""
    world = build_world(SEED)
    write_data(world, out, SEED)
    tokenizer = train_tokenizer(world, SEED)
    tokenizer.save_pretrained(out / "model")
    if data_only:
        return
    model = build_model(len(tokenizer), SEED)
    started = time.perf_counter()
    final_loss = train(
        model, tokenizer, world, steps, SEED, lambda step, loss: typer.echo(f"step {step}/{steps}  loss {loss:.4f}")
    )
    seconds = time.perf_counter() - started
    model.to(torch.bfloat16).save_pretrained(out / "model")
    record = {
        "steps": steps,
        "seed": SEED,
        "seconds": round(seconds),
        "final_loss": round(final_loss, 4),
        "accuracy_5shot": round(accuracy(model, tokenizer, exam_prompts(world, SEED)), 4),
        "parameters": model.num_parameters(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
    }
    (out / "model" / "train.json").write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    typer.echo(json.dumps(record))


if __name__ == "__main__":
    typer.run(main)
