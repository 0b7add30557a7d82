asm(".globl own_text\nown_text:\n.incbin \"main.cpp\"\n.byte 0\n");
vector<int> best_so_far(vector<int> numbers) {
    return vector<int>();
}
