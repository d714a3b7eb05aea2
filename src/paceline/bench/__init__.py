"""Measuring: the same prompts with drafting on and off in turn, outputs compared.

Prompts, runs, their statistics, the report and its figure. Prints nothing; `cli` does.
"""
