"""When and how written bytes become durable."""
