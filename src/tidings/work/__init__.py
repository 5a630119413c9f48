"""What a worker does with the messages of its groups.

A message's way: `consumer` pulls it; `each`, `pool`, `together` or `batches` runs its handler; `handling` says what
becomes of it; `hands` keeps its lease meanwhile and settles it. `worker` starts and stops it all.
"""
