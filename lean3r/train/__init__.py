"""Training: a config, a loop that can be killed and resumed exactly, checkpoints, logs, processes that share work.

The loop knows no model: it receives the model, the loss, the batches and the validator.
"""
