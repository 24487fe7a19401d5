"""The durable log: records in segments, one writer, any readers in any processes."""
