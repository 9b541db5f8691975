"""Adapters of the message store port: one that is durable on one machine, and its twin in memory."""
