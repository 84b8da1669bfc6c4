"""Benchmarks of the operators, and the commands that write the tables in results/."""
