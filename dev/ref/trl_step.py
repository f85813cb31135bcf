"""TRL's GRPO step on the CPU: its time and memory, to stand beside ours.

    pip install torch "transformers>=5" "trl==1.16.*"
    python dev/data/smollm2.py models/smollm2-f32 --dtype float32
    python dev/ref/trl_step.py models/smollm2-f32
    ./train --model models/smollm2-f32 --data FILE --prompts 4 --group 8 --max-tokens 64 ...

One optimizer step of float32: 4 prompts, 8 completions each, of at most 64 tokens, every one with
a reward of its own so that no group is without a gradient; AdamW, no reference model, gradient
checkpointing off (TRL's default is on: --checkpointing). Prints a JSON line per step with its
seconds, those of the processor (where the machine is shared, they say more), and the most memory
that the process has had (GB = 1e9 bytes). The first step also pays for what is done once: --steps
says how many are done.
"""
import argparse
import json
import resource
import tempfile
import time

import datasets
import torch
import transformers
import trl

PROMPTS = [
    "A farmer has 12 sheep and buys 7 more. How many sheep has the farmer now?",
    "Write an expression that uses 3, 5 and 7 once each and makes 22.",
    "A train leaves at 9:40 and arrives at 11:05. How many minutes does it take?",
    "Name three rivers and say for each into which sea it flows.",
]


def reward(completions, **_):
    """By the number of different characters: quick, and seldom the same twice in a group."""
    return [len(set(str(completion))) / 100 for completion in completions]


class Clock(transformers.TrainerCallback):
    """Says what each step took."""

    def __init__(self):
        self.began = self.began_cpu = 0.0
        self.seconds = []

    def on_step_begin(self, *_, **__):
        self.began, self.began_cpu = time.monotonic(), time.process_time()

    def on_step_end(self, *_, **__):
        self.seconds.append(time.monotonic() - self.began)
        cpu = time.process_time() - self.began_cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
        print(json.dumps({"step": len(self.seconds), "seconds": round(self.seconds[-1], 2),
                          "cpu_seconds": round(cpu, 2), "peak_gb": round(peak, 2)}), flush=True)

    def on_log(self, _, __, ___, logs=None, **____):
        shown = ("completions/mean_length", "completions/clipped_ratio", "entropy", "reward",
                 "reward_std", "loss", "grad_norm", "step_time")
        print(json.dumps({key: logs[key] for key in shown if key in (logs or {})}), flush=True)


def settings(arguments, folder):
    return trl.GRPOConfig(
        output_dir=folder, use_cpu=True, bf16=False, fp16=False, seed=1,
        per_device_train_batch_size=32, gradient_accumulation_steps=1, num_generations=8,
        max_completion_length=64, max_steps=arguments.steps, learning_rate=1e-6, beta=0.0,
        temperature=1.0, gradient_checkpointing=arguments.checkpointing, logging_steps=1,
        save_strategy="no", report_to=[], disable_tqdm=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="a directory, such as dev/data/smollm2.py makes")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--checkpointing", action="store_true")
    arguments = parser.parse_args()
    clock = Clock()
    rows = [{"prompt": [{"role": "user", "content": text}]} for text in PROMPTS]
    model = transformers.AutoModelForCausalLM.from_pretrained(arguments.model, dtype=torch.float32)
    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.GRPOTrainer(
            model=model, reward_funcs=reward, args=settings(arguments, folder),
            processing_class=transformers.AutoTokenizer.from_pretrained(arguments.model,
                                                                        padding_side="left"),
            train_dataset=datasets.Dataset.from_list(rows), callbacks=[clock])
        trainer.train()
    print(json.dumps({"trl": trl.__version__, "transformers": transformers.__version__,
                      "torch": torch.__version__, "threads": torch.get_num_threads(),
                      "seconds": [round(s, 2) for s in clock.seconds]}))


if __name__ == "__main__":
    main()
