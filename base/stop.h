/* The user's wish to stop (SIGINT, SIGTERM), for long loops to poll. A signal handler sets it. */
#ifndef BASE_STOP_H
#define BASE_STOP_H

#include "base/err.h"

#include <signal.h>

extern volatile sig_atomic_t stop_asked;
err stop_check(void); /* ERR_STOPPED once it is set */

#endif
