/* Causal attention in bfloat16. */

/* The version of this kernel, 0 where the processor cannot run it. */
int attention_version(void)
{
    return 0;
}
