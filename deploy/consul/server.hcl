# One of three Consul servers: /etc/consul.d/consul.hcl. They are the memory of the system, and on machines of their own, or
# beside schedulers and status nodes; not beside access nodes, whose load comes in storms.
# Check it with: consul validate consul.hcl
#
# Encryption between the agents is the same for every use of Consul and is not here: its documents have it.

datacenter = "dc1"
node_name = "consul-1"
server = true
bootstrap_expect = 3
data_dir = "/var/lib/consul"

# Where the other agents reach this one. Its HTTP interface is for this machine alone.
bind_addr = "10.0.0.41"
client_addr = "127.0.0.1"
retry_join = ["10.0.0.41", "10.0.0.42", "10.0.0.43"]

performance {
  # A leader that is lost is noticed in about a second, instead of five.
  raft_multiplier = 1
}

limits {
  # From one address: each node of the system holds a few connections, and waits there for changes.
  http_max_conns_per_client = 1000
}

# Nothing is allowed without a token. The agent has one of its own, with the right to write its node:
# consul acl set-agent-token agent TOKEN
acl {
  enabled = true
  default_policy = "deny"
  # While no server can be asked, what was allowed stays allowed.
  down_policy = "extend-cache"
  enable_token_persistence = true
}

telemetry {
  prometheus_retention_time = "60s"
}
