"""A real model learns a stated preference from 200 automatic ratings, and a control shows that it was the ratings.

    python examples/live_adaptation.py [--seeds N] [--json OUT] [--check] [--base-url URL]

The preference: finished, concise answers. The system message already asks for one short sentence, which
SmolLM2-135M-Instruct mostly does not give. Two tenants of one server ask the same training questions, and a program
(`reward` below) rates each answer from the text that the client sees. Tenant `learn` gets its own ratings; tenant
`control` gets its own too, but permuted across its requests. Then both answer 32 questions that nobody rated.

Reward alone proves nothing, so the table also says whether the answers stay diverse (distinct word pairs), likely
under the unadapted model (perplexity) and on topic (cosine of question and answer).
"""

import argparse
import asyncio
import dataclasses
import hashlib
import os
import random
import sys
import time
from contextlib import ExitStack
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
from served import served

sys.path.append(str(Path(__file__).parents[1] / "benchmarks"))
from report import Report, Row, add_arguments, finish

QUESTIONS = Path(__file__).with_name("live_adaptation_questions.txt")
SYSTEM = "You answer in one short sentence."
MODEL = "smollm2-135m-instruct"
MAX_TOKENS, TEMPERATURE = 48, 0.7
FEEDBACKS, SAMPLES = 200, 4
AT_ONCE = 8  # requests in flight of one tenant; both tenants share the server
POOL = 16  # the control's ratings are permuted within so many requests

CONFIG = """
model_list:
  - model_name: {model}
    litellm_params: {{model: local/{model}, threads: {threads}, logit_cache_mb: 2048}}
sona:
  metrics:
    concise: {{min: 0, max: 1}}
  engine: {{micro_lora_rank: 2, micro_lora_lr: 0.002, quality_threshold: 0.2}}  # the guide's research profile
  keys:
    - {{key: "{admin}", tenant: operator, roles: [use, teach, admin]}}
"""
KEY = '    - {{key: "{key}", tenant: {tenant}, roles: [use, teach]}}\n'


@dataclasses.dataclass(frozen=True)
class Answer:
    """What a client gets for one question."""

    question: str
    text: str
    finish_reason: str
    request_id: str

    @property
    def reward(self) -> float:
        """How well the preference is met, in [0, 1]."""
        return reward(self.text, self.finish_reason)


def reward(text: str, finish_reason: str) -> float:
    """Finished, a sentence, neither a word nor a lecture: 1 from 8 to 30 words, falling to 0 at 2 and at 60."""
    words = len(text.split())
    if finish_reason != "stop":
        return 0.0
    length = min(1.0, max(0.0, (words - 2) / 6), max(0.0, (60 - words) / 30))
    return length * (1.0 if text.strip().endswith((".", "!", "?")) else 0.3)


def questions(section: str) -> list[str]:
    """One section of the questions' file."""
    parts = QUESTIONS.read_text(encoding="utf-8").split(f"[{section}]\n")
    return [line for line in parts[1].split("\n[")[0].splitlines() if line.strip() and not line.startswith("#")]


class Tenant:
    """A client of the server under its own key."""

    def __init__(self, base_url: str, key: str) -> None:
        self.http = httpx.AsyncClient(
            base_url=base_url, headers={"authorization": f"Bearer {key}"}, timeout=httpx.Timeout(600)
        )
        self.turn = asyncio.Semaphore(1)

    async def ask(self, question: str, seed: int) -> Answer:
        """One answer, drawn at the temperature of this example."""
        body = {
            "model": MODEL,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            "max_tokens": MAX_TOKENS,
            "temperature": TEMPERATURE,
            "seed": seed,
        }
        async with self.turn:
            response = await self.http.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        choice = response.json()["choices"][0]
        return Answer(
            question, choice["message"]["content"], choice["finish_reason"], response.headers["x-sona-request-id"]
        )

    async def rate(self, answer: Answer, value: float) -> None:
        """Feedback for one answer; the server says that it has it before it learns from it."""
        body = {"request_id": answer.request_id, "metric_name": "concise", "value": value}
        (await self.http.post("/v1/feedback", json=body)).raise_for_status()

    async def measure(self, seed: int, *, at_once: int) -> list[Answer]:
        """`SAMPLES` answers to each unseen question, in the order of the questions."""
        self.turn = asyncio.Semaphore(at_once)
        asked = [(q, seed + i) for q in questions("unseen") for i in range(SAMPLES)]
        return list(await asyncio.gather(*(self.ask(question, number) for question, number in asked)))

    async def teach(self, seed: int, *, permuted: bool) -> None:
        """`FEEDBACKS` answers to training questions, rated as they come (permuted: as each pool is full)."""
        self.turn = asyncio.Semaphore(AT_ONCE)
        rng, train = random.Random(seed), questions("train")
        order = [question for _ in range(-(-FEEDBACKS // len(train))) for question in rng.sample(train, len(train))]
        asked = [self.ask(question, seed + i) for i, question in enumerate(order[:FEEDBACKS])]
        pool: list[Answer] = []
        for i, answering in enumerate(asyncio.as_completed(asked), start=1):
            pool.append(await answering)
            if not permuted or len(pool) == POOL or i == FEEDBACKS:
                rewards = [answer.reward for answer in pool]
                rng.shuffle(rewards)  # a pool of one keeps its own
                for answer, value in zip(pool, rewards, strict=True):
                    await self.rate(answer, value)
                pool.clear()


async def settled(base_url: str, key: str) -> None:
    """Waits until everything said so far is learned."""
    async with httpx.AsyncClient(base_url=base_url, headers={"authorization": f"Bearer {key}"}) as http:
        while not (await http.get("/v1/sona/stats", timeout=60)).json()["learner"]["idle"]:  # noqa: ASYNC110
            await asyncio.sleep(0.5)


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The three sets of answers of one seed."""

    before: list[Answer]
    after: list[Answer]
    control: list[Answer]


async def run(base_url: str, keys: tuple[str, str, str], seed: int) -> Outcome:
    """One seed: measure, teach both tenants at the same time, measure both."""
    learn, control, admin = keys
    student, placebo = Tenant(base_url, learn), Tenant(base_url, control)
    number, began = 10_000 * seed, time.monotonic()

    def say(what: str) -> None:
        print(f"seed {seed}, {time.monotonic() - began:4.0f} s: {what}", file=sys.stderr, flush=True)

    async with student.http, placebo.http:
        before = await student.measure(number, at_once=2 * AT_ONCE)
        say(f"mean reward {mean_reward(before):.2f} before; {FEEDBACKS} ratings for each of two tenants")
        teaching = (student.teach(number + 1000, permuted=False), placebo.teach(number + 2000, permuted=True))
        await asyncio.gather(*teaching)
        say("all rated; waiting until all is learned")
        await settled(base_url, admin)
        say("learned; measuring both tenants on the unseen questions")
        after, shuffled = await asyncio.gather(
            student.measure(number + 3000, at_once=AT_ONCE), placebo.measure(number + 4000, at_once=AT_ONCE)
        )
        say(f"mean reward {mean_reward(after):.2f} after, {mean_reward(shuffled):.2f} in the control")
    return Outcome(before, after, shuffled)


def mean_reward(answers: list[Answer]) -> float:
    """Over all questions and samples."""
    return float(np.mean([answer.reward for answer in answers]))


def noise(one: list[Answer], other: list[Answer]) -> float:
    """Two standard errors of the difference of mean rewards, from its spread over the questions."""
    by_question = [np.reshape([a.reward for a in answers], (-1, SAMPLES)).mean(axis=1) for answers in (one, other)]
    return float(2 * np.std(by_question[1] - by_question[0], ddof=1) / np.sqrt(len(by_question[0])))


def distinct2(answers: list[Answer], pairs: int, rng: random.Random) -> float:
    """Share of different word pairs among `pairs` of them; answers are taken in random order."""
    seen: list[tuple[str, str]] = []
    for answer in rng.sample(answers, len(answers)):
        seen += pairwise(answer.text.lower().split())
    return len(set(seen[:pairs])) / pairs


def distinct2_ratio(outcome: Outcome) -> float:
    """After over before, over equal numbers of word pairs, mean of 20 random orders."""
    count = min(sum(max(0, len(a.text.split()) - 1) for a in part) for part in (outcome.before, outcome.after))
    rng = random.Random(0)
    before, after = ([distinct2(p, count, rng) for _ in range(20)] for p in (outcome.before, outcome.after))
    return float(np.mean(after) / np.mean(before))


def relevance(answers: list[Answer]) -> float:
    """Mean cosine of question and answer in the bundled static embedding."""
    from sona_stream_adapters.embedders.static import StaticEmbedder

    embedder = StaticEmbedder()
    asked, said = (
        embedder.embed_many(texts) for texts in zip(*((a.question, a.text) for a in answers), strict=True)
    )
    return float(np.mean(np.sum(asked * said, axis=1)))


class BaseModel:
    """The unadapted model, for perplexities."""

    def __init__(self) -> None:
        from sona_stream_adapters.local.model import load_model
        from sona_stream_adapters.local.weights import pull_model

        self.model = load_model(pull_model(MODEL, progress=print), name=MODEL)

    def perplexity(self, answers: list[Answer]) -> float:
        """Exp of the mean negative log-likelihood per token, every second answer, the end token where it came."""
        import torch

        total, tokens = 0.0, 0
        for answer in answers[::2]:
            messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": answer.question}]
            text = self.model.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            said = answer.text + ("<|im_end|>" if answer.finish_reason == "stop" else "")
            prompt, ids = (self.model.tokenizer(part, add_special_tokens=False).input_ids for part in (text, said))
            with torch.inference_mode():
                hidden = self.model.prefill(torch.tensor([prompt + ids]), self.model.new_cache())
                logits = self.model.logits(hidden[0, len(prompt) - 1 : -1])
                total += float(torch.nn.functional.cross_entropy(logits, torch.tensor(ids), reduction="sum"))
            tokens += len(ids)
        return float(np.exp(total / tokens))


def report_of(outcomes: list[Outcome]) -> Report:
    """The rows; with several seeds the mean, and the lowest and highest as the spread."""
    report, base = Report("live_adaptation"), BaseModel()
    before, after, control = (
        [mean_reward(getattr(o, name)) for o in outcomes] for name in ("before", "after", "control")
    )
    answers = len(outcomes[0].before)

    def row(id: str, values: list[float], **more: object) -> None:
        spread = (min(values), max(values))
        report.add(Row(id, float(np.mean(values)), more.pop("unit", "ratio"), spread, len(values), **more))

    start = float(np.mean(before))
    row("reward_before", before, unit="reward", compared={"lowest allowed": 0.15, "highest allowed": 0.6})
    goal = max(1.4 * start, start + 0.1)
    gain = {"gain_pct": 100 * (float(np.mean(after)) / start - 1), "answers a seed": answers}
    row("reward_after", after, unit="reward", goal=goal, direction=">=", compared=gain)
    row("reward_control_after", control, unit="reward", compared={"reward_before": start})
    shifts = [abs(c - b) / noise(o.before, o.control) for o, b, c in zip(outcomes, before, control, strict=True)]
    row("control_shift_over_noise", shifts, goal=1.0, compared={"noise": "2 standard errors of the difference"})
    row("distinct2_ratio", [distinct2_ratio(o) for o in outcomes], goal=0.9, direction=">=")
    row("base_ppl_ratio", [base.perplexity(o.after) / base.perplexity(o.before) for o in outcomes], goal=1.6)
    row("relevance_ratio", [relevance(o.after) / relevance(o.before) for o in outcomes], goal=0.9, direction=">=")
    for name in ("before", "after", "control"):
        chosen = getattr(outcomes[0], name)[: 5 * SAMPLES : SAMPLES]
        report.note(f"{name}: " + " | ".join(f"{a.text!r} ({a.finish_reason})" for a in chosen))
    return report


def config_for(seeds: int) -> tuple[str, list[tuple[str, str, str]]]:
    """YAML with two tenants a seed, and their keys: (learn, control, admin)."""
    admin = _key()
    text = CONFIG.format(model=MODEL, threads=os.cpu_count() or 1, admin=_hash(admin))
    keys = [(_key(), _key(), admin) for _ in range(seeds)]
    for seed, (learn, control, _) in enumerate(keys):
        text += KEY.format(key=_hash(learn), tenant=f"learn-{seed}")
        text += KEY.format(key=_hash(control), tenant=f"control-{seed}")
    return text, keys


def _key() -> str:
    return f"sk-{os.urandom(16).hex()}"


def _hash(key: str) -> str:
    return f"sha256:{hashlib.sha256(key.encode()).hexdigest()}"


def main() -> None:
    """Runs every seed one after another, with its own two tenants."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seeds", type=int, default=1, help="repeat with so many pairs of fresh tenants")
    parser.add_argument("--base-url", help="a running server; it declares the metric `concise` (min 0, max 1)")
    parser.add_argument("--keys", nargs=3, metavar="KEY", help="with --base-url: of two tenants and an admin")
    add_arguments(parser)
    args = parser.parse_args()
    with ExitStack() as stack:
        if args.base_url:
            if args.keys is None or args.seeds != 1:
                parser.error("--base-url needs --keys LEARN CONTROL ADMIN, and takes one seed")
            base_url, keys = args.base_url, [tuple(args.keys)]
        else:
            config, keys = config_for(args.seeds)
            base_url = stack.enter_context(served(config))
        outcomes = [asyncio.run(run(base_url, keys[seed], seed)) for seed in range(args.seeds)]
    finish(report_of(outcomes), args)


if __name__ == "__main__":
    main()
