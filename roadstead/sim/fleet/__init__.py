"""The fleet simulator: schedulers, access nodes and hundreds of thousands of clients, on simulated time.

It answers how even a fleet is and how hard its nodes are hit, under the scheduler's own engine and plan of moves, and
under the ways that are common elsewhere: in the same story, told with the same chance.

Tour: `nodes`, `balancers` and `engines` are who takes part, `fleet` is what happens, `figures` what is told of it.
`movers` and `resolvers` are for some stories only. `steady`, `scaling`, `losses` and `rollouts` are the stories, which
`catalog` lists, and `chart` draws.

Run it: `roadstead simulate --list`.
"""
