"""Data: what there is (`catalog`), reading it (`dataset.load`), feeding it (`batches`), fetching it (`fetch`).

Nothing is imported here: the command line lists data sets without waiting for torch.
"""
