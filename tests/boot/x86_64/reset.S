/* A 64 KiB boot ROM that puts an emulated processor into the state that a CpuState describes, and jumps to the kernel.
 * The numbers come from it as --defsym symbols; the GDT, page tables and all else are in guest memory already. */
        .code16
start:  cli
        lgdtl   %cs:(flat - start)
        mov     %cr0, %eax
        or      $1, %eax
        mov     %eax, %cr0
        ljmpl   $8, $protected + ROM
        .code32
protected:
        mov     $16, %eax
        mov     %eax, %ds
        movl    $0x1FF, 0xFEE000F0      /* local APIC on, the PIC wired through LINT0: firmware's work, and KVM set-up's */
        movl    $0x700, 0xFEE00350
        lgdt    gdtr + ROM
        lidt    idtr + ROM
        mov     $CR4, %eax
        mov     %eax, %cr4
        mov     $CR3, %eax
        mov     %eax, %cr3
        mov     $0xC0000080, %ecx
        mov     $(EFER & ~0x400), %eax
        xor     %edx, %edx
        wrmsr
        mov     $CR0, %eax
        mov     %eax, %cr0
        ljmpl   $CS, $entered + ROM
entered:
        mov     $DS, %eax
        mov     %eax, %ds
        mov     %eax, %es
        mov     %eax, %fs
        mov     %eax, %gs
        mov     %eax, %ss
        /* from here on the encoding is the same in 32-bit and in 64-bit mode */
        mov     $RSP, %esp
        mov     $RSI, %esi
        mov     $RBX, %ebx
        mov     $RIP, %eax
        jmp     *%eax

        .balign 8
table:  .quad   0, 0x00CF9B000000FFFF, 0x00CF93000000FFFF
flat:   .word   . - table - 1
        .long   table + ROM
gdtr:   .word   GDT_LIMIT
        .long   GDT_BASE, 0
idtr:   .word   IDT_LIMIT
        .long   IDT_BASE, 0

        .org    0xFFF0
        .code16
        jmp     start
        .org    0x10000
