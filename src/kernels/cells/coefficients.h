/* Made by coefficients.py; do not edit.
 * expm1(r) ~ r + r^2 p(r), |r| <= ln(2)/2, the lowest term of p first. */
#ifndef FASTRNN_COEFFICIENTS_H
#define FASTRNN_COEFFICIENTS_H

/* f32: degree 4, relative error of the polynomial 1.32e-08 */
#define EXPM1_TERMS_f32 5
#define EXPM1_P_f32 {0x1.fffffe0000000p-2f, 0x1.5554b00000000p-3f, 0x1.5556740000000p-5f, 0x1.1227760000000p-7f, 0x1.6bec080000000p-10f}

/* f64: degree 9, relative error of the polynomial 1.80e-17 */
#define EXPM1_TERMS_f64 10
#define EXPM1_P_f64 {0x1.0000000000005p-1, 0x1.5555555555539p-3, 0x1.55555555522b8p-5, 0x1.1111111118fabp-7, 0x1.6c16c17edbaa4p-10, 0x1.a01a017514ab1p-13, 0x1.a019a76f46bedp-16, 0x1.71de88074a288p-19, 0x1.28a1dff9e4bafp-22, 0x1.ae6ba6e2eb357p-26}

#endif
