"""A script of transformers and PEFT that trains, as a client of a federation (docs/trainer.md).

python examples/trainer.py MODEL north.csv south.csv west.csv     # a rehearsal between these files
python examples/trainer.py MODEL north.csv                        # alone, as the script was before

MODEL is a folder in the Hugging Face layout; the files have the columns text and label. A site
starts the same script by itself, with FOREFED_MODEL and FOREFED_ROWS in the place of arguments.
"""

import csv
import os
import sys

from peft import LoraConfig, get_peft_model
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    DataCollatorWithPadding,
    Trainer,
    TrainingArguments,
)

import forefed

LABELS = ["files", "gui", "internet", "numbers"]


def trainer(model_folder: str, file: str) -> Trainer:
    """What the script trained by before it knew of others."""
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    with open(file, newline="", encoding="utf-8") as stream:
        rows = [
            {
                **tokenizer(row["text"], truncation=True, max_length=48),
                "labels": LABELS.index(row["label"]),
            }
            for row in csv.DictReader(stream)
        ]
    model = AutoModelForSequenceClassification.from_pretrained(model_folder, num_labels=len(LABELS))
    adapter = LoraConfig(r=8, lora_alpha=16, target_modules=["query", "value"], task_type="SEQ_CLS")
    arguments = TrainingArguments(
        "trained",
        max_steps=12,
        per_device_train_batch_size=16,
        learning_rate=1e-3,
        lr_scheduler_type="constant",
        save_strategy="no",
        report_to=[],
        use_cpu=True,
    )
    return Trainer(
        get_peft_model(model, adapter),
        arguments,
        train_dataset=rows,
        data_collator=DataCollatorWithPadding(tokenizer),
        processing_class=tokenizer,
    )


if __name__ == "__main__":
    if "FOREFED_SITE" in os.environ:  # a site has started this script
        one = trainer(os.environ["FOREFED_MODEL"], os.environ["FOREFED_ROWS"])
        forefed.hf.federate(one)
    elif len(sys.argv) == 3:
        trainer(*sys.argv[1:]).train()
    elif len(sys.argv) > 3:
        model, *files = sys.argv[1:]
        result = forefed.hf.simulate([trainer(model, file) for file in files], rounds=5)
        print("mean training loss by round:", [round(x, 3) for x in result.losses])
    else:
        sys.exit(__doc__)
