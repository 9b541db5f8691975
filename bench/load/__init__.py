"""The load generator: many clients in processes of their own, driven by a benchmark over standard input and output.

Tour: `fleet` is the benchmark's side, which starts the workers and adds their reports up; `worker` is a process, `wire`
what the two say to each other, a JSON line each. In a worker `opener` opens connections at a pace, `client` is one of
them, `sender` sends messages by a schedule, `histogram` keeps what was measured.

Clients are protocols on the event loop, without a task or a timer each, so that one process holds 19,000 of them. Their
own addresses are spread over 127.0.0.0/8, since one address has some 28,000 ports towards a destination. Latencies are
without coordinated omission: a message carries the time at which its schedule meant it to be sent.
"""
