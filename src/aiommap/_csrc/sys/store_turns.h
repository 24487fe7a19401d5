/* store_turns.h: how many threads of this process store blocks at once: all processors but one. Who
 * waits here waits without Python's lock, which the event loop would have to wait for in turn. Knows
 * nothing of Python. */
#ifndef AIOMMAP_STORE_TURNS_H
#define AIOMMAP_STORE_TURNS_H

/* Take a turn for one block, and give it back. Waits for others. */
void store_turn_take(void);
void store_turn_give(void);

#endif
