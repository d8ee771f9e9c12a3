/* The small program that a tracer has to follow through its start and its end. */
int main(void)
{
	return 0;
}
