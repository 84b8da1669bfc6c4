"""What a run's folder holds."""

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint/last.safetensors"
TASK = "task.safetensors"
