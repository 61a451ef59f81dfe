/* fedlora: the client program. Its commands are in client/command/. */
#include "client/command/command.h"
#include "client/command/spin.h"

int main(int argc, char **argv)
{
    spin_briefly(argv);
    return command_main(argc, argv);
}
