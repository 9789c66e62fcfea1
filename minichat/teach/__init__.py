"""From a person's own pictures to a model that knows them, in one call: `minichat teach`.

`lessons` reads what there is, asks what is missing and holds some out; `measure` finds out what a model knows; `run`
chooses how to train, trains by `minichat.train`, and tells what came of it.
"""
