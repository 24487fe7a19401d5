"""The soak: everything at once, on real files, each part with an oracle of its own.

``python -m benchmarks soak`` runs *rounds*, each in an event loop of its own: asyncio, uvloop and
trio in turn. In a round every *actor* of the cast plays *scenes* one after another, all actors at
the same time and in one hub. A scene is an async function that makes a file, has it used and
abused, and compares what it finds with what it knows must be there; it raises ``BrokenOracleError``
if that is not so. Any other exception that leaves a scene, and a scene that does not end, is a
failure as well.

After each round nothing of it may be left: see ``leaks``. The seed decides what actors draw; which
task runs first is up to the machine, so a seed brings back the mixture and not the exact order.
"""
