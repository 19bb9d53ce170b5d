// Runs the tests of a program: all, or those whose name contains the first argument.
#include "check.h"

int main(int argc, char** argv) { return check::run(argc, argv); }
