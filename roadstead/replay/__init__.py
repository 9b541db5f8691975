"""A recorded crowd talks through the system again: real people's messages in their order and with their gaps.

Tour: `dataset` reads the recording, `core.day` lays its conversations on one day, `core.plan` says who does what when.
`person` is one user with a stock client on each device, `crowd` is all of them; `stage` is the system that they use,
and `operations` what is done to it meanwhile. Whatever devices saw is judged by `core.proof`, and what happened when is
put together by `core.figures` for `report` and `chart`. `run` does all of it.
"""
