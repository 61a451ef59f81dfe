#include "base/stop.h"

volatile sig_atomic_t stop_asked;

err stop_check(void)
{
    return stop_asked ? err_make(ERR_STOPPED, "interrupted") : ERR_NONE;
}
