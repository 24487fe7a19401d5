/* loop_watch.c: a profile hook that passes on only calls of C functions with certain names, and no other
 * event. An interpreter calls it some ten million times a minute. */
#include <Python.h>
#include <string.h>

enum { MOST = 256, LONGEST = 32 };

/* For each first letter, the names that begin with it; an empty name ends them. */
static char names[128][MOST / 8][LONGEST];

/* Pass on calls of functions with this name; 0 if there is no room for it. */
int watch_name(const char *name)
{
    char(*known)[LONGEST] = names[name[0] & 127];
    for (int i = 0; i < MOST / 8 - 1; i++)
        if (!known[i][0])
            return strlen(name) < LONGEST && strcpy(known[i], name);
    return 0;
}

static int is_watched(const char *name)
{
    for (char(*known)[LONGEST] = names[name[0] & 127]; (*known)[0]; known++)
        if (!strcmp(*known, name))
            return 1;
    return 0;
}

static int on_event(PyObject *look, PyFrameObject *frame, int what, PyObject *function)
{
    if (what != PyTrace_C_CALL || !PyCFunction_Check(function) ||
        !is_watched(((PyCFunctionObject *)function)->m_ml->ml_name))
        return 0;
    PyObject *done = PyObject_CallFunction(look, "OsO", frame, "c_call", function);
    Py_XDECREF(done);
    return done ? 0 : -1;
}

/* Do what sys.setprofile(look) does, for this thread. */
void watch_calls(PyObject *look) { PyEval_SetProfile(on_event, look); }
