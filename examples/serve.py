"""Serves a causal LM on this machine in the OpenAI protocol: python examples/serve.py MODEL.

Without MODEL it makes a tiny one with fresh weights, asks it once and stops. For trying things out:
`stillroom collect prompts.jsonl --teacher openai:MODEL --base-url http://127.0.0.1:8000/v1 ...`
"""

import argparse
import json
import sys
import threading
import urllib.request
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))

from servers import Server
from speakers import Model, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("model", nargs="?", help="a hub name or a folder")
parser.add_argument("--port", type=int, default=0, help="a free one if none is told")
told = parser.parse_args()

if told.model:
    model = AutoModelForCausalLM.from_pretrained(told.model)
    speaker = Model(model, AutoTokenizer.from_pretrained(told.model), told.model)
else:
    speaker = Model(*tiny(), "tiny")

with Server(speaker, port=told.port) as server:
    print(f"{speaker.name} at {server.url}", flush=True)
    if told.model:
        threading.Event().wait()  # until it is interrupted
    asked = {"model": "tiny", "prompt": "to be", "max_tokens": 8, "temperature": 0, "logprobs": 1}
    head = {"Content-Type": "application/json"}
    request = urllib.request.Request(f"{server.url}/completions", json.dumps(asked).encode(), head)
    answer = json.load(urllib.request.urlopen(request))
    print("answer:", repr(answer["choices"][0]["text"]), "of", answer["usage"])
    print("log-probabilities:", answer["choices"][0]["logprobs"]["token_logprobs"])
