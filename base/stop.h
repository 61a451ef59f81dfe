/* The request to stop (SIGINT, SIGTERM). The signal handler sets the flag; long loops poll it. */
#ifndef BASE_STOP_H
#define BASE_STOP_H

#include "base/err.h"

#include <signal.h>

extern volatile sig_atomic_t stop_asked; /* the signal's number; 0: no request */
err stop_check(void);                    /* ERR_STOPPED once it is set */

#endif
