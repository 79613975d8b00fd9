"""Research: adapters on the layers inside a local model, beside the adapter of its last hidden state alone.

    python examples/per_layer.py [--ratings N] [--layers all | 0,15,29] [--rank N] [--model NAME_OR_FOLDER]

One server has the same weights twice, as `final` and as `layers`. Both answer the same training questions with the
same seeds, the same program rates both (finished, concise answers: `reward` of live_adaptation.py), and both refit
on their ratings at once, under the same bounds and gates. Then both answer questions that nobody rated.

What is inside the model is learned by autograd through it: a refit takes minutes where the last layer's takes
seconds, and the model's weights are not packed for speed. So it is a setting of a local model, for research.
"""

import argparse
import asyncio
import dataclasses
import hashlib
import os
import random
import time

import httpx
from live_adaptation import MAX_TOKENS, SYSTEM, TEMPERATURE, Answer, distinct2, mean_reward, questions
from served import served

MODELS = ("final", "layers")
TENANT = "researcher"
CONFIG = """
model_list:
  - model_name: final
    litellm_params: {{model: "local/{model}", threads: {threads}}}
  - model_name: layers
    litellm_params: {{model: "local/{model}", threads: {threads}, layers: {layers}, layer_rank: {rank}}}
sona:
  metrics:
    concise: {{min: 0, max: 1}}
  engine: {{micro_lora_rank: 2, micro_lora_lr: 0.002, quality_threshold: 0.2}}  # the guide's research profile
  learner: {{replay_every: 1000}}  # one refit, when all is rated
  keys:
    - {{key: "{key}", tenant: {tenant}, roles: [use, teach, admin]}}
"""


@dataclasses.dataclass(frozen=True)
class Client:
    """Of the server, for both of its models."""

    http: httpx.AsyncClient
    turn: asyncio.Semaphore

    async def ask(self, model: str, question: str, seed: int) -> Answer:
        """One answer."""
        body = {
            "model": model,
            "messages": [{"role": "system", "content": SYSTEM}, {"role": "user", "content": question}],
            "max_tokens": MAX_TOKENS,
            "temperature": TEMPERATURE,
            "seed": seed,
        }
        async with self.turn:
            response = await self.http.post("/v1/chat/completions", json=body)
        response.raise_for_status()
        choice = response.json()["choices"][0]
        text = choice["message"]["content"] or ""
        return Answer(question, text, choice["finish_reason"], response.headers["x-sona-request-id"])

    async def rate(self, answer: Answer) -> None:
        """As a person would who likes finished, concise answers."""
        body = {"request_id": answer.request_id, "metric_name": "concise", "value": answer.reward}
        (await self.http.post("/v1/feedback", json=body)).raise_for_status()

    async def post(self, path: str) -> None:
        """A switch for admins."""
        (await self.http.post(path)).raise_for_status()

    async def settled(self) -> None:
        """Waits until everything said so far is learned."""
        while not (await self.http.get("/v1/sona/stats")).json()["learner"]["idle"]:  # noqa: ASYNC110
            await asyncio.sleep(0.2)

    async def served(self, model: str) -> dict:
        """What is known of the version that serves this model's answers; {} when it is the bare model."""
        rows = (await self.http.get("/v1/sona/adapters")).json()["data"]
        mine = [row for row in rows if row["key"] == f"{model}/{TENANT}/*" and row["served"]]
        return mine[0] if mine else {}

    async def measure(self, model: str, count: int) -> list[Answer]:
        """Two answers each to questions that nobody rates."""
        asked = [(q, 1000 + 2 * i + n) for i, q in enumerate(questions("unseen")[:count]) for n in range(2)]
        return list(await asyncio.gather(*(self.ask(model, question, seed) for question, seed in asked)))


async def run(base_url: str, key: str, ratings: int, unseen: int) -> None:
    """Measure, rate, refit, measure."""
    headers = {"authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(base_url=base_url, headers=headers, timeout=httpx.Timeout(600)) as http:
        client = Client(http, asyncio.Semaphore(8))
        before = await client.measure("final", unseen)
        await client.post("/v1/sona/freeze")  # judgements are kept, and learned when it is lifted
        train = questions("train")
        for model in MODELS:
            answers = await asyncio.gather(*(client.ask(model, train[i % len(train)], i) for i in range(ratings)))
            for answer in answers:
                await client.rate(answer)
            print(f"{model}: {ratings} answers rated, mean reward {mean_reward(answers):.2f}", flush=True)
        await client.settled()
        began = time.monotonic()
        await client.post("/v1/sona/thaw")
        await client.settled()
        print(f"both refits took {time.monotonic() - began:.0f} s\n")
        after = {model: await client.measure(model, unseen) for model in MODELS}
        _table(before, after, {model: await client.served(model) for model in MODELS})


def _table(before: list[Answer], after: dict[str, list[Answer]], served: dict[str, dict]) -> None:
    pairs = min(sum(max(0, len(a.text.split()) - 1) for a in answers) for answers in (before, *after.values()))
    print(f"{'':8}{'reward':>8}{'KL to base':>12}{'distinct-2':>12}{'kB':>7}   version")

    def row(name: str, answers: list[Answer], version: dict) -> None:
        kl = version.get("metrics", {}).get("mean_kl_to_base", 0.0)
        variety = sum(distinct2(answers, pairs, random.Random(n)) for n in range(20)) / 20 if pairs else 0.0
        size, told = version.get("bytes", 0) / 1e3, f"{version['version']}" if version else "bare model"
        print(f"{name:8}{mean_reward(answers):8.3f}{kl:12.4f}{variety:12.3f}{size:7.0f}   {told}")

    row("before", before, {})
    for model, answers in after.items():
        row(model, answers, served[model])
    for name, answers in (("before", before), *after.items()):
        print(f"\n{name}: " + " | ".join(repr(answer.text) for answer in answers[:6:2]))


def main() -> None:
    """Starts a server with both models and runs the comparison on it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="smollm2-135m-instruct", help="a local model's name, or its folder")
    parser.add_argument("--layers", default="all", help="numbers of the layers, or all")
    parser.add_argument("--rank", type=int, default=2, help="of each layer's pair")
    parser.add_argument("--ratings", type=int, default=50)
    parser.add_argument("--unseen", type=int, default=32, help="questions to measure on, at most 32")
    args = parser.parse_args()
    key = f"sk-{os.urandom(16).hex()}"
    config = CONFIG.format(
        model=args.model,
        layers=args.layers if args.layers == "all" else f"[{args.layers}]",
        rank=args.rank,
        threads=os.cpu_count() or 1,
        key=f"sha256:{hashlib.sha256(key.encode()).hexdigest()}",
        tenant=TENANT,
    )
    with served(config) as base_url:
        asyncio.run(run(base_url, key, args.ratings, args.unseen))


if __name__ == "__main__":
    main()
