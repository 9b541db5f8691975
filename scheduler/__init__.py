"""The access scheduler: tells each client which access nodes to try and when, and signs the ticket that lets it in.

Tour, along a request: `front` takes it off the port (or aiohttp does), `access_api` reads who asks and from where,
`geography` finds out where that is, `decider` asks the `core/engine` and remembers why, `tickets` and `tokens` make the
ticket. What the engine goes by: the access nodes' reports (`following`), and what operators ordered (`orders`):
rollouts, policies, cordons, lists. What is seen through: `rollouts` step and judge, `wishes` and `movers` move live
connections. For operators: `admin`, `rollouts_api`, `policies_api`, `lists_api`, `recorder`. For other programs: `eds`
(Envoy), `targets` (Prometheus), `agent_check` (HAProxy), `ofrep` (OpenFeature); and `promql`, which asks one.

Cores, in `core/`: a decision (`engine`, on a `snapshot` of `pools`, by `load`, `churn`, `regions`, `cohorts`,
`policy`), its `explanation`, `recording` and `shadow`; documents (`document`, `fields`, `conditions`,
`rollout_document`); a rollout's course (`rollout_machine`, judged by `analysis` of a `ledger` with `evidence`); moves
(`balance`, `moving`, `breaker`); places (`locating`, `networks`, `places`, `rtt`).

Access nodes import `api` (the ticket) and `client` (its verification) only.
"""
