/* store_turns.h: how many threads of this process store blocks at once: one less than there are
 * processors, but at least one. A thread waits here without the GIL, so that the event loop does
 * not wait with it. Knows nothing of Python. */
#ifndef AIOMMAP_STORE_TURNS_H
#define AIOMMAP_STORE_TURNS_H

/* Take a turn for one block, which may wait for other threads; and give it back. */
void store_turn_take(void);
void store_turn_give(void);

#endif
