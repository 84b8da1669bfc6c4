"""What a run's folder holds."""

from sfa_ext.deltas import TASK_FILE

CONFIG = "config.yaml"
CHECKPOINT = "checkpoint/last.safetensors"
TASK = TASK_FILE
