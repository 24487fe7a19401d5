"""The soak: everything at once, on real files, where each part has an oracle of its own.

``python -m benchmarks soak`` runs *rounds*, each in an event loop of its own: asyncio, uvloop and
trio in turn. In a round every *actor* of the cast plays *scenes* one after another, all actors at
the same time and in one hub. A scene is an async function that makes a file, uses and abuses it,
and compares what it finds with what it knows must be there. If they differ, it raises
``BrokenOracleError``. Any other exception that leaves a scene is a failure as well, and so is a
scene that does not end.

After each round nothing of it may be left: see ``leaks``. The seed decides what actors draw. Which
task runs first is up to the machine, so a seed repeats the mixture and not the exact order.
"""
