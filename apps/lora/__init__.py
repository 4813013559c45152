"""LoRA fine-tuning of any model that dattn serves, under any attention."""
