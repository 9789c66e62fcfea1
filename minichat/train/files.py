"""The files of a run's folder in which it keeps and tells what it did. What it trained stands beside them."""

LOCK = ".lock"
CONFIG, METRICS, LEFT_OUT = "config.yaml", "metrics.jsonl", "left_out.txt"
BEFORE, CURVE, PAGE = "before.json", "curve.png", "report.html"
CHECKPOINTS = "checkpoints"  # a folder
TRAINING = "training.json"  # the facts of the run that made a folder of weights

#: Where a run begins with another run's folder, these are not of the model that is there.
OF_A_RUN = frozenset({LOCK, CONFIG, METRICS, LEFT_OUT, BEFORE, CURVE, PAGE, TRAINING})
