"""The command line. The verb you type is the file you open: generate, chat, bench, demo.

Standard output carries what was asked for, the model's text or the report; all else goes to
standard error. Uses the public interface of `paceline.engine` only.
"""
