# The Consul agent of a machine with nodes of the system, which ask it at 127.0.0.1: /etc/consul.d/consul.hcl
# Check it with: consul validate consul.hcl
#
# The nodes register themselves, as services `roadstead-ROLE` with checks that they keep up, and take themselves out:
# there are no service definitions to write.

datacenter = "dc1"
server = false
data_dir = "/var/lib/consul"

bind_addr = "{{ GetPrivateIP }}"
client_addr = "127.0.0.1"
retry_join = ["10.0.0.41", "10.0.0.42", "10.0.0.43"]

# Leaving would end what its nodes registered, and their sessions; an agent that is only restarted must not.
leave_on_terminate = false

limits {
  http_max_conns_per_client = 1000
}

# Nothing is allowed without a token. The agent has one of its own, with the right to write its node:
# consul acl set-agent-token agent TOKEN
acl {
  enabled = true
  default_policy = "deny"
  down_policy = "extend-cache"
  enable_token_persistence = true
}

telemetry {
  prometheus_retention_time = "60s"
}
