/* per_thread.h: variables of a thread that a signal handler uses. */
#ifndef AIOMMAP_PER_THREAD_H
#define AIOMMAP_PER_THREAD_H

/* initial-exec: the handler must not enter the dynamic TLS allocator. musl has no such allocator,
 * because it gives all threads their part when it loads a library, and it loads no library that
 * asks for initial-exec. */
#ifdef __GLIBC__
#define PER_THREAD _Thread_local __attribute__((tls_model("initial-exec")))
#else
#define PER_THREAD _Thread_local
#endif

#endif
