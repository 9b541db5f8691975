# What the token of the nodes may do, no less and no more, for registry.prefix = "roadstead":
#
#   consul acl policy create -name roadstead -rules @policy.hcl
#   consul acl token create -description "Roadstead nodes" -policy-name roadstead
#
# Each rule is needed, and no other: nodes of Consul, for instance, are not read. Agents have tokens of their own. Another
# system at the same Consul has another prefix and another token.

# Tables, orders, locks, and what nodes report.
key_prefix "roadstead/" {
  policy = "write"
}

# Nodes register themselves and keep their checks up, and find the others.
service_prefix "roadstead-" {
  policy = "write"
}

# Sessions belong to the Consul node of the agent that is asked: locks are held by them.
session_prefix "" {
  policy = "write"
}
