/* fedlora: the client's one program. The commands are in client/command_*.c. */
#include "client/command.h"

int main(int argc, char **argv)
{
    return command_main(argc, argv);
}
