"""Carries the spool on to Kafka."""
