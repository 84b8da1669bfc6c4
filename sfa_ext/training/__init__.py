"""The fit loop: recipes, schedules, checkpoints, logs, evaluation."""
