"""The durable log: records in segments, one writer, any number of readers in any processes."""
